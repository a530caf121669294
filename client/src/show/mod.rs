//! How things look on a terminal.

mod job;
mod progress;
mod summary;
mod sweep;
mod table;
mod text;
mod usage;

pub use job::{describe_job, event_line, score_name, state_line, state_name, worker_state_name};
pub use progress::Progress;
pub use summary::{Adapter, summary};
pub use sweep::{describe_sweep, sweep_line, sweep_state_name};
pub use table::Table;
pub use text::{age, bytes, date, duration, number};
pub use usage::usage_table;
