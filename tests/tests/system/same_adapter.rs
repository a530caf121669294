//! The adapter does not depend on the fleet: one worker, two or three, one thread or two, the same file.

use anyhow::Result;
use lorafleet_tests::{Fleet, JobFile, Options};

#[tokio::test(flavor = "multi_thread")]
async fn one_two_and_three_workers_write_the_same_file() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.start_worker("a", 1)?;
    let one = fleet.submit(&JobFile { name: "one", workers: (1, 1), ..JobFile::default() })?;
    let job = fleet.succeeded(&one).await?;
    let (folder, expected) = fleet.adapter(&one)?;

    let result = job.result.unwrap_or_default();
    assert_eq!(result.adapter_sha256, expected, "the job's result names another file");
    assert!(result.eval_loss_after < result.eval_loss_before, "training made the adapter worse: {result:?}");
    assert_eq!(result.answers.len(), 1);
    assert_eq!(result.bytes_sent_per_step, 0);
    assert!(folder.join("adapter_config.json").exists());

    fleet.start_worker("b", 2)?;
    let two = fleet.submit(&JobFile { name: "two", workers: (2, 2), ..JobFile::default() })?;
    let job = fleet.succeeded(&two).await?;
    assert_eq!(fleet.adapter(&two)?.1, expected, "two workers wrote another adapter");
    let result = job.result.unwrap_or_default();
    let buffer = 8 * result.trainable_parameters;
    let sent = result.bytes_sent_per_step;
    assert!(sent >= buffer && sent < buffer + 1024, "{sent} bytes for a buffer of {buffer}");

    fleet.start_worker("c", 1)?;
    let three = fleet.submit(&JobFile { name: "three", workers: (3, 3), ..JobFile::default() })?;
    fleet.succeeded(&three).await?;
    assert_eq!(fleet.adapter(&three)?.1, expected, "three workers wrote another adapter");

    let points = fleet.points(&three).await?;
    let steps: Vec<u64> = points.iter().map(|p| p.step).filter(|s| *s > 0).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn summing_in_f32_halves_the_bytes() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.start_worker("a", 1)?;
    fleet.start_worker("b", 1)?;
    let name = fleet.submit(&JobFile { steps: 2, reduce: "f32", workers: (2, 2), ..JobFile::default() })?;
    let result = fleet.succeeded(&name).await?.result.unwrap_or_default();
    let buffer = 4 * result.trainable_parameters;
    let sent = result.bytes_sent_per_step;
    assert!(sent >= buffer && sent < buffer + 1024, "{sent} bytes for a buffer of {buffer}");
    Ok(())
}
