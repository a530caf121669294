//! The coordinator: jobs in Postgres, a scheduler, the fleet of workers, and the gRPC API over them.
//!
//! Rules that hold in every room: a state changes only through [`job`]; every write that a worker causes carries the
//! fence and is guarded by equality; nothing needs a database session; no transaction waits for anything but Postgres.

#![forbid(unsafe_code)]

pub mod api;
pub mod bars;
pub mod config;
pub mod db;
pub mod ids;
pub mod job;
pub mod leader;
pub mod membership;
pub mod scheduler;
pub mod silence;
pub mod stillness;
pub mod sweeper;
pub mod usage;

mod access;
mod check;
mod checkpoints;
mod convert;
mod dispatch;
mod events;
mod explain;
mod fleet;
mod fresh;
mod gang;
mod group;
mod housekeeping;
mod hub;
mod intake;
mod labels;
mod leadership;
mod metrics;
mod points;
mod queue;
mod quota;
mod run;
mod sweeps;
mod tenants;
mod tokens;
mod watch;

pub use config::Config;
pub use metrics::METRICS;
pub use run::{RunError, run};
