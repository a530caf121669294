//! Two jobs at once, two coordinators at once: everything runs once.

use anyhow::Result;
use lorafleet_proto::v1 as pb;
use lorafleet_tests::{Fleet, JobFile, Options};

#[tokio::test(flavor = "multi_thread")]
async fn two_jobs_run_at_the_same_time_on_two_workers() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    let long = JobFile { steps: 20, workers: (1, 2), ..JobFile::default() };
    let first = fleet.submit(&JobFile { name: "first", ..long.clone() })?;
    let second = fleet.submit(&JobFile { name: "second", seed: 2, ..long })?;
    fleet.start_worker("a", 1)?;
    fleet.start_worker("b", 1)?;
    let [first, second] = [fleet.succeeded(&first).await?, fleet.succeeded(&second).await?];
    let span = |job: &pb::Job| {
        (job.start_time.map(|t| (t.seconds, t.nanos)), job.end_time.map(|t| (t.seconds, t.nanos)))
    };
    assert!(
        span(&first).0 < span(&second).1 && span(&second).0 < span(&first).1,
        "they ran one after the other"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_coordinators_start_every_job_once() -> Result<()> {
    let mut fleet = Fleet::start(Options { coordinators: 2, ..Options::default() }).await?;
    fleet.start_worker_at("a", 1, 0)?;
    fleet.start_worker_at("b", 1, 1)?;
    let mut names = Vec::new();
    for seed in 0..4 {
        names.push(fleet.submit(&JobFile { name: "one-of-four", steps: 3, seed, ..JobFile::default() })?);
    }
    for name in &names {
        fleet.succeeded(name).await?;
        assert_eq!(fleet.attempts(name).await?.len(), 1, "{name} was started twice");
    }
    // A gang over both: each member is attached to another coordinator.
    let gang = fleet.submit(&JobFile { name: "gang", steps: 3, workers: (2, 2), ..JobFile::default() })?;
    let job = fleet.succeeded(&gang).await?;
    assert_eq!(fleet.attempts(&gang).await?[0].workers.len(), 2);
    assert!(job.result.unwrap_or_default().bytes_sent_per_step > 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_too_large_for_the_fleet_waits_and_says_why() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.start_worker("a", 1)?;
    let large = fleet.submit(&JobFile { name: "large", workers: (3, 3), ..JobFile::default() })?;
    let job = fleet.job_when(&large, "a reason", |job| !job.state_message.is_empty()).await?;
    assert_eq!(job.state(), pb::JobState::Queued);
    assert!(job.state_message.contains('3') && job.state_message.contains('1'), "{}", job.state_message);
    // It does not stand in the way of one that fits.
    let small = fleet.submit(&JobFile { name: "small", steps: 2, ..JobFile::default() })?;
    fleet.succeeded(&small).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_frees_its_worker() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.start_worker("a", 1)?;
    let endless = fleet.submit(&JobFile { name: "endless", steps: 100_000, ..JobFile::default() })?;
    fleet.job_when(&endless, "step 2", |job| job.step >= 2).await?;
    assert!(fleet.cli(&["cancel", &endless])?.status.success());
    assert_eq!(fleet.ended(&endless).await?.state(), pb::JobState::Cancelled);
    let next = fleet.submit(&JobFile { name: "next", steps: 2, ..JobFile::default() })?;
    fleet.succeeded(&next).await?;
    assert!(!fleet.cli(&["cancel", &endless])?.status.success(), "an ended job was cancelled again");
    Ok(())
}
