//! Sweeps: many jobs of one submission, stored together, compared at rungs, ended early where they are worse.

mod advance;
pub mod halving;
mod read;
mod rows;

pub use advance::{advance, cancel_children};
pub use read::{children, exists, get, list};
pub use rows::{CancelSweepError, Created, NewSweep, by_request_id, cancel, create};
