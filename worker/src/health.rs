//! The standard gRPC health service of a worker: `liveness` and `readiness` are different names.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tracing::warn;

use crate::agent::AgentState;

/// Whether this process should be left alone: it is up and serves.
pub const LIVENESS: &str = "liveness";
/// Whether it takes work: connected to its coordinator, and not draining.
pub const READINESS: &str = "readiness";
/// How often readiness is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Serves health until the runtime ends; returns where.
///
/// # Errors
/// The address is not to be had.
pub async fn serve(address: SocketAddr, state: AgentState) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let (reporter, service) = tonic_health::server::health_reporter();
    for name in ["", LIVENESS] {
        reporter.set_service_status(name, ServingStatus::Serving).await;
    }
    reporter.set_service_status(READINESS, ServingStatus::NotServing).await;
    tokio::spawn(async move {
        let mut was_ready = false;
        loop {
            let ready = state.is_ready();
            if ready != was_ready {
                let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
                reporter.set_service_status(READINESS, status).await;
                was_ready = ready;
            }
            tokio::time::sleep(LOOK).await;
        }
    });
    tokio::spawn(async move {
        let serving = Server::builder().add_service(service);
        if let Err(error) = serving.serve_with_incoming(TcpListenerStream::new(listener)).await {
            warn!(%error, "health is not served any more");
        }
    });
    Ok(address)
}
