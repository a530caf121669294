//! Waiting until the parts of a fleet say that they can work.

use std::{collections::BTreeSet, time::Duration};

use lorafleet::{Client, pb, short_id};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

/// Between two looks.
const POLL: Duration = Duration::from_millis(100);

/// Returns when the coordinator at `url` answers that it serves. The caller limits the wait.
pub async fn coordinator_serves(url: &str) {
    while !serves(url).await {
        tokio::time::sleep(POLL).await;
    }
}

async fn serves(url: &str) -> bool {
    let Ok(endpoint) = tonic::transport::Endpoint::from_shared(url.to_owned()) else { return false };
    let endpoint = endpoint.connect_timeout(Duration::from_secs(1)).timeout(Duration::from_secs(2));
    let Ok(channel) = endpoint.connect().await else { return false };
    let request = HealthCheckRequest { service: String::new() };
    match HealthClient::new(channel).check(request).await {
        Ok(answer) => answer.into_inner().status() == ServingStatus::Serving,
        Err(_) => false,
    }
}

/// Returns when every one of `names` is a ready worker of the coordinator. The caller limits the wait.
pub async fn workers_ready(url: &str, names: &BTreeSet<String>) {
    loop {
        if let Ok(client) = Client::connect(url).await
            && let Ok(workers) = client.list_workers().await
        {
            let ready = |worker: &&pb::Worker| worker.state() == pb::WorkerState::Ready;
            let ready: BTreeSet<_> =
                workers.iter().filter(ready).map(|worker| short_id(&worker.name).to_owned()).collect();
            if names.is_subset(&ready) {
                return;
            }
        }
        tokio::time::sleep(POLL).await;
    }
}
