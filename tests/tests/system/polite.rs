//! SIGTERM to a worker: it finishes the step, checkpoints, leaves, and the job loses nothing and counts nothing.

use std::time::Duration;

use anyhow::Result;
use lorafleet_proto::v1 as pb;
use lorafleet_tests::{Fleet, JobFile, Options};

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_worker_gives_its_job_back() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.start_worker("a", 1)?;
    let long = JobFile { steps: 30, workers: (1, 1), ..JobFile::default() };
    let undisturbed = fleet.submit(&JobFile { name: "undisturbed", ..long.clone() })?;
    fleet.succeeded(&undisturbed).await?;

    let name = fleet.submit(&JobFile { name: "released", ..long })?;
    fleet.job_when(&name, "step 3", |job| job.step >= 3).await?;
    let status = fleet.worker("a")?.terminate(Duration::from_secs(60))?;
    assert!(status.success(), "the worker ended with {status}");

    let job = fleet.job_when(&name, "to be queued", |job| job.state() == pb::JobState::Queued).await?;
    assert_eq!(job.infrastructure_failures, 0);
    fleet.start_worker("b", 2)?;
    fleet.succeeded(&name).await?;
    assert_eq!(fleet.adapter(&name)?.1, fleet.adapter(&undisturbed)?.1);

    let attempts = fleet.attempts(&name).await?;
    assert_eq!(attempts[0].state(), pb::AttemptState::Released);
    assert!(attempts[1].start_step >= 3, "steps were lost: it began after {}", attempts[1].start_step);
    let redone = fleet.points(&name).await?.iter().filter(|p| p.attempt == 2).count() as u64;
    assert_eq!(attempts[1].start_step + redone, 30, "no step was taken twice");
    Ok(())
}
