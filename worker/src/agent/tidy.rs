//! Keeping a job's checkpoints tidy: those that the keep rule lets go, and what unfinished ones left.

use std::time::Duration;

use lorafleet_store::{CheckpointId, Store, delete_checkpoint, sweep_torn};
use tokio::time::timeout;
use tracing::{info, warn};

/// All of one acknowledgement's work.
const LIMIT: Duration = Duration::from_secs(600);

/// After the coordinator has acknowledged a checkpoint of this worker. What fails is named again with the next
/// acknowledgement.
pub async fn tidy(store: Store, acknowledged: String, expired: Vec<String>) {
    let all = async {
        for name in expired {
            match delete(&store, &name).await {
                Ok(()) => info!(checkpoint = name, "old checkpoint deleted"),
                Err(error) => warn!(checkpoint = name, error, "old checkpoint not deleted"),
            }
        }
        if let Err(error) = sweep(&store, &acknowledged).await {
            warn!(error, "unfinished checkpoints not deleted");
        }
    };
    if timeout(LIMIT, all).await.is_err() {
        warn!("old checkpoints were not deleted in time");
    }
}

async fn delete(store: &Store, name: &str) -> Result<(), String> {
    let (job, id) = CheckpointId::parse_resource_name(name).map_err(|error| error.to_string())?;
    delete_checkpoint(store, &job, &id).await.map_err(|error| error.to_string())
}

/// A gang writes one checkpoint at a time, in the order of the steps; so what was begun before one that counts, and is
/// not whole, was begun by somebody who is gone.
async fn sweep(store: &Store, acknowledged: &str) -> Result<(), String> {
    let (job, last) = CheckpointId::parse_resource_name(acknowledged).map_err(|error| error.to_string())?;
    let is_dead = |id: &CheckpointId| *id < last && id.fence().attempt <= last.fence().attempt;
    let swept = sweep_torn(store, &job, is_dead).await.map_err(|error| error.to_string())?;
    if !swept.is_empty() {
        info!(%job, checkpoints = swept.len(), "unfinished checkpoints deleted");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn torn_ones_before_the_one_that_counts_go() {
        let store = Store::open("memory://").unwrap();
        let name = |step: u64, attempt: u32| {
            format!("jobs/j/checkpoints/{step:010}-{attempt:04}-0001-00000000000000ff")
        };
        let kept = [name(20, 3), name(30, 2)];
        for torn in [name(10, 1), name(10, 2), name(20, 1)].iter().chain(&kept) {
            store.put(&format!("{torn}/optimizer.safetensors").into(), "x".into()).await.unwrap();
        }
        tidy(store.clone(), name(20, 2), vec!["no checkpoint".to_owned()]).await;
        let left = store.list(&"jobs".into()).await.unwrap();
        let left: Vec<String> = left.iter().map(|object| object.path.to_string()).collect();
        assert_eq!(left, kept.map(|name| format!("{name}/optimizer.safetensors")));
    }
}
