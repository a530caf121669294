//! Logs and metrics of every lorafleet process, set up in one way.
//!
//! ```no_run
//! use lorafleet_telemetry::{LogFormat, Metric, init, serve_metrics};
//! # async fn start() -> Result<(), lorafleet_telemetry::Error> {
//! init("lorafleet-worker", LogFormat::Human)?;
//! let server = serve_metrics(([127, 0, 0, 1], 0).into(), &[Metric::counter("lorafleet_steps_total", "Finished steps")]).await?;
//! tracing::info!(address = %server.address(), "metrics");
//! # Ok(()) }
//! ```

#![forbid(unsafe_code)]

mod error;
mod logs;
mod metrics_server;

pub use error::Error;
pub use logs::{LogFormat, init};
pub use metrics_server::{Metric, MetricKind, MetricsServer, serve_metrics};

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;
