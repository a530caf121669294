//! The harness of the whole-system tests: a private fleet of real processes, one per test.

pub mod chaos;
pub mod classifier;
pub mod fleet;
pub mod http;
pub mod job_file;
pub mod process;
pub mod quantile;
pub mod queue;
pub mod s3;
pub mod scheduler;
pub mod wait;

pub use fleet::{Fleet, Options};
pub use job_file::JobFile;
