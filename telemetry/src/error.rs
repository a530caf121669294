//! What can go wrong while logs and metrics are set up.

use std::net::SocketAddr;

/// Why there are no logs or metrics.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter in the environment is not one.
    #[error(
        "{variable}={value:?} is no log filter: {reason}; an example is `info,lorafleet_coordinator=debug`"
    )]
    Filter {
        /// The environment variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something else in this process receives logs already.
    #[error("logs of this process are set up already")]
    LogsTaken,
    /// Something else in this process receives metrics already.
    #[error("metrics of this process are set up already, not by lorafleet")]
    MetricsTaken,
    /// Histogram buckets are wrong.
    #[error("metrics cannot be set up: {0}")]
    Metrics(String),
    /// The metrics' address is not to be had.
    #[error(
        "cannot serve metrics at {address}: {source}; choose another address, or port 0 for any free port"
    )]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}
