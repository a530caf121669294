//! Client, coordinator and workers share a network and an S3 server, and no folder.

use anyhow::Result;
use lorafleet_tests::{Fleet, JobFile, Options};

#[tokio::test(flavor = "multi_thread")]
async fn data_and_base_travel_by_upload() -> Result<()> {
    let mut fleet = Fleet::start(Options { s3: true, ..Options::default() }).await?;
    fleet.start_worker("a", 1)?;
    fleet.start_worker("b", 1)?;
    let name =
        fleet.submit(&JobFile { steps: 4, checkpoint_every: 2, workers: (2, 2), ..JobFile::default() })?;
    fleet.succeeded(&name).await?;
    let (folder, digest) = fleet.adapter(&name)?;
    assert!(folder.join("adapter_config.json").exists());

    // What was uploaded once is not sent again, and the same job is the same adapter.
    let again = fleet.submit(&JobFile { steps: 4, checkpoint_every: 2, ..JobFile::default() })?;
    fleet.succeeded(&again).await?;
    assert_eq!(fleet.adapter(&again)?.1, digest);

    // The stored spec names digests, not paths of the client's.
    let job = fleet.job(&name).await?;
    let base = job.spec.and_then(|s| s.base).unwrap_or_default();
    assert_eq!(base.sha256.len(), 64);
    Ok(())
}
