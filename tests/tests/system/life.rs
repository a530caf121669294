//! The life of a job as its user leads it: paused, resumed, explained, and nothing of it lost.

use anyhow::Result;
use lorafleet_proto::v1 as pb;
use lorafleet_tests::{Fleet, JobFile, Options};
use pb::{AttemptState, JobState};

/// What a command says, and its exit code.
fn said(fleet: &Fleet, args: &[&str]) -> Result<(String, Option<i32>)> {
    let output = fleet.cli(args)?;
    let text = [output.stdout, output.stderr].concat();
    Ok((String::from_utf8_lossy(&text).trim_end().to_owned(), output.status.code()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_job_goes_on_where_it_was_and_ends_in_the_same_adapter() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.start_worker("a", 1)?;
    let long = JobFile { steps: 30, ..JobFile::default() };
    let undisturbed = fleet.submit(&JobFile { name: "undisturbed", ..long.clone() })?;
    let name = fleet.submit(&JobFile { name: "paused", ..long })?;
    let id = name.trim_start_matches("jobs/").to_owned();

    // One that waits is paused at once, and holds no worker.
    assert_eq!(said(&fleet, &["pause", &id])?, (format!("{name} is paused: paused by its user"), Some(0)));
    let expected = format!("{name} is paused at step 0: paused by its user");
    assert_eq!(said(&fleet, &["explain", &id])?, (expected, Some(0)));
    fleet.succeeded(&undisturbed).await?;
    let refused = said(&fleet, &["pause", &undisturbed])?;
    assert_eq!(refused, ("error: the job has succeeded; it cannot be paused".to_owned(), Some(5)));
    let refused = said(&fleet, &["resume", &undisturbed])?;
    assert_eq!(refused, ("error: the job has succeeded; it cannot be resumed".to_owned(), Some(5)));
    let explained = said(&fleet, &["explain", &undisturbed])?.0;
    assert_eq!(explained, format!("{undisturbed} has succeeded: finished after step 30"));
    assert_eq!(said(&fleet, &["resume", &id])?.1, Some(0));

    // One that runs writes a checkpoint, and gives its worker back.
    fleet.job_when(&name, "step 3", |job| job.step >= 3).await?;
    let (text, code) = said(&fleet, &["pause", &id])?;
    assert_eq!(code, Some(0));
    assert!(text.starts_with(&format!("{name} is running: is about to pause")), "{text}");
    let paused = fleet.job_when(&name, "to be paused", |job| job.state() == JobState::Paused).await?;
    let kept = fleet.cli_json(&["checkpoints", &id, "--json"])?;
    assert_eq!(kept["checkpoints"][0]["step"], paused.step.to_string(), "the last step is not kept: {kept}");
    let (text, _) = said(&fleet, &["explain", &id])?;
    assert!(
        text.starts_with(&format!("{name} is paused at step {}: paused by its user", paused.step)),
        "{text}"
    );
    assert!(said(&fleet, &["list", "--state", "paused"])?.0.contains(&id));
    assert_eq!(said(&fleet, &["resume", &id])?.1, Some(0));

    let done = fleet.succeeded(&name).await?;
    assert_eq!(fleet.adapter(&name)?.1, fleet.adapter(&undisturbed)?.1);
    assert_eq!((done.infrastructure_failures, done.retries_used, done.preemptions), (0, 0, 0));
    let attempts = fleet.attempts(&name).await?;
    assert_eq!(attempts[0].state(), AttemptState::Released);
    assert_eq!((attempts.len(), attempts[1].start_step), (2, paused.step));
    let redone = fleet.points(&name).await?.iter().filter(|point| point.attempt == 2).count() as u64;
    assert_eq!(paused.step + redone, 30, "a step was taken twice");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preempted_job_comes_back_and_ends_in_the_same_adapter() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.start_worker("a", 1)?;
    // Small steps, and so many that the job cannot end before the urgent one is looked at.
    let long =
        JobFile { steps: 150, global_batch: 2, micro_batches: 2, priority: -100, ..JobFile::default() };
    let undisturbed = fleet.submit(&JobFile { name: "undisturbed", ..long.clone() })?;
    fleet.succeeded(&undisturbed).await?;
    let low = fleet.submit(&JobFile { name: "low", ..long })?;
    fleet.job_when(&low, "step 3", |job| job.step >= 3).await?;
    let urgent = fleet.submit(&JobFile { name: "urgent", steps: 3, priority: 1000, ..JobFile::default() })?;
    fleet.succeeded(&urgent).await?;
    let done = fleet.succeeded(&low).await?;
    assert_eq!(fleet.adapter(&low)?.1, fleet.adapter(&undisturbed)?.1);
    assert_eq!((done.preemptions, done.infrastructure_failures, done.retries_used), (1, 0, 0));
    let attempts = fleet.attempts(&low).await?;
    assert_eq!((attempts.len(), attempts[0].state()), (2, AttemptState::Released));
    assert!(attempts[1].start_step >= 3, "steps were lost: it began after {}", attempts[1].start_step);
    Ok(())
}
