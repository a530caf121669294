//! The coordinator or Postgres away in the middle of a job: it goes on, in the same attempt, to the same adapter.

use std::time::Duration;

use anyhow::{Result, ensure};
use lorafleet_failpoint::FAILPOINT;
use lorafleet_tests::{Fleet, JobFile, Options};

const STEPS: u64 = 40;

fn job(name: &'static str) -> JobFile {
    JobFile { name, steps: STEPS, checkpoint_every: 10, workers: (2, 2), ..JobFile::default() }
}

/// Two workers, and a job that nothing disturbed.
async fn undisturbed(options: Options) -> Result<(Fleet, String)> {
    let mut fleet = Fleet::start(options).await?;
    fleet.start_worker("a", 1)?;
    fleet.start_worker("b", 1)?;
    let undisturbed = fleet.submit(&job("undisturbed"))?;
    fleet.succeeded(&undisturbed).await?;
    Ok((fleet, undisturbed))
}

/// The second job ended as the first did, in one attempt.
async fn is_as_undisturbed(fleet: &Fleet, name: &str, undisturbed: &str) -> Result<()> {
    let done = fleet.succeeded(name).await?;
    assert_eq!(done.attempt, 1, "it was restarted");
    assert_eq!(fleet.adapter(name)?.1, fleet.adapter(undisturbed)?.1, "another adapter after the outage");
    Ok(())
}

/// Every step has one point, with the loss of the undisturbed run.
async fn has_every_point(fleet: &Fleet, name: &str, undisturbed: &str) -> Result<()> {
    let losses = async |name| -> Result<Vec<(u64, u64)>> {
        Ok(fleet.points(name).await?.iter().map(|point| (point.step, point.loss.to_bits())).collect())
    };
    assert_eq!(losses(name).await?, losses(undisturbed).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_killed_and_started_anew_restarts_no_job_and_loses_no_point() -> Result<()> {
    let (mut fleet, undisturbed) = undisturbed(Options::default()).await?;
    let name = fleet.submit(&job("coordinator"))?;
    fleet.job_when(&name, "step 5", |job| job.step >= 5).await?;
    for _ in 0..2 {
        let before = fleet.job(&name).await?.step;
        ensure!(before < STEPS, "the job was over too soon");
        fleet.coordinators[0].kill()?;
        fleet.restart_coordinator(0).await?;
    }
    is_as_undisturbed(&fleet, &name, &undisturbed).await?;
    has_every_point(&fleet, &name, &undisturbed).await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_coordinator_takes_over_from_one_that_is_gone() -> Result<()> {
    let mut fleet = Fleet::start(Options { coordinators: 2, ..Options::default() }).await?;
    // Tests and workers speak to coordinator 0; which of the two leads is theirs to race for.
    fleet.start_worker_at("a", 1, 0)?;
    fleet.start_worker_at("b", 1, 0)?;
    let first = fleet.submit(&job("undisturbed"))?;
    fleet.succeeded(&first).await?;
    let name = fleet.submit(&job("takeover"))?;
    fleet.job_when(&name, "step 5", |job| job.step >= 5).await?;
    fleet.coordinators[1].kill()?;
    is_as_undisturbed(&fleet, &name, &first).await?;
    has_every_point(&fleet, &name, &first).await?;
    // Whoever of them led: what comes after it is scheduled.
    let next = fleet.submit(&job("after"))?;
    fleet.succeeded(&next).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_postgres_restarts_no_job_and_loses_no_point() -> Result<()> {
    let (mut fleet, undisturbed) = undisturbed(Options { durable: true, ..Options::default() }).await?;
    let name = fleet.submit(&job("postgres"))?;
    fleet.job_when(&name, "step 5", |job| job.step >= 5).await?;
    for _ in 0..2 {
        fleet.postgres.stop()?;
        fleet.postgres.start_again()?;
    }
    is_as_undisturbed(&fleet, &name, &undisturbed).await?;
    has_every_point(&fleet, &name, &undisturbed).await
}

/// What it forgot of the job's history is lost, but neither the job nor a step of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_forgets_its_last_commits_restarts_no_job() -> Result<()> {
    let (mut fleet, undisturbed) = undisturbed(Options::default()).await?;
    let name = fleet.submit(&job("forgetful"))?;
    for step in [1, 8, 15] {
        fleet.job_when(&name, &format!("step {step}"), |job| job.step >= step).await?;
        fleet.postgres.stop()?;
        fleet.postgres.start_again()?;
    }
    is_as_undisturbed(&fleet, &name, &undisturbed).await
}

/// The last checkpoint has with it what the coordinator had not heard of, and whoever resumes from it tells it.
#[tokio::test(flavor = "multi_thread")]
async fn no_point_is_lost_with_all_workers_while_the_coordinator_is_away() -> Result<()> {
    let alone = |name| JobFile { workers: (1, 1), ..job(name) };
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.start_worker_with("doomed", 1, &[(FAILPOINT, "checkpoint-before-row@30=kill")])?;
    let name = fleet.submit(&alone("forsaken"))?;
    fleet.job_when(&name, "step 5", |job| job.step >= 5).await?;
    fleet.coordinators[0].kill()?;
    fleet.worker("doomed")?.wait(Duration::from_secs(120))?;
    fleet.restart_coordinator(0).await?;
    ensure!(fleet.job(&name).await?.step < 30, "the coordinator knew of all steps");

    fleet.start_worker("heir", 1)?;
    fleet.succeeded(&name).await?;
    let attempts = fleet.attempts(&name).await?;
    ensure!(attempts.len() == 2 && attempts[1].start_step == 30, "{}", fleet.history(&name).await?);
    let undisturbed = fleet.submit(&alone("undisturbed"))?;
    fleet.succeeded(&undisturbed).await?;
    ensure!(fleet.adapter(&name)?.1 == fleet.adapter(&undisturbed)?.1, "another adapter");
    has_every_point(&fleet, &name, &undisturbed).await
}
