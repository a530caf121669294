//! The client library: what a program needs to submit jobs to a lorafleet coordinator, follow them and fetch what
//! they produced. The `lorafleet` command is a thin shell over it.
//!
//! ```no_run
//! # async fn example() -> Result<(), lorafleet::ClientError> {
//! let client = lorafleet::Client::connect("http://127.0.0.1:7400").await?;
//! for job in client.list_jobs(&[], "", 10).await? {
//!     println!("{} is at step {}", job.name, job.step);
//! }
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod artifacts;
mod cache;
mod client;
mod error;
mod files;
mod hub;
mod job_file;
mod names;
mod remote_base;
mod retry;
mod sweeps;
mod tenants;
mod time;
mod usage;
mod watch;

pub use artifacts::{Progress, ProgressFor, Uploaded, base_file, checkpoint_file, dataset};
pub use cache::Cache;
pub use client::Client;
pub use error::ClientError;
pub use files::LocalFile;
pub use hub::{Hub, HubBase, HubConfig, HubError};
pub use job_file::{JobFile, Sent};
pub use lorafleet_proto::v1 as pb;
pub use lorafleet_spec::FieldError;
pub use names::{checkpoint_name, job_name, short_id, sweep_name, tenant_name, token_name};
pub use sweeps::{SweepFile, is_over};
pub use time::timestamp;
pub use usage::UsageQuery;
pub use watch::{Update, Watch, is_terminal};
