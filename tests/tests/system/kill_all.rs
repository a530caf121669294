//! A job whose workers were all killed goes on from its last checkpoint, to the same adapter.

use anyhow::{Context as _, Result};
use lorafleet_proto::v1 as pb;
use lorafleet_tests::{Fleet, JobFile, Options};

fn job(name: &'static str) -> JobFile {
    JobFile { name, steps: 40, checkpoint_every: 4, workers: (2, 2), ..JobFile::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_new_workers_finish_what_two_dead_ones_began() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.start_worker("a", 1)?;
    fleet.start_worker("b", 1)?;
    let undisturbed = fleet.submit(&job("undisturbed"))?;
    fleet.succeeded(&undisturbed).await?;

    let name = fleet.submit(&job("killed"))?;
    fleet.job_when(&name, "step 9", |job| job.step >= 9).await?;
    fleet.worker("a")?.kill()?;
    fleet.worker("b")?.kill()?;
    let at_kill = fleet.job(&name).await?.step;
    assert!(at_kill < 40, "it was killed too late, at step {at_kill}");

    fleet.start_worker("c", 1)?;
    fleet.start_worker("d", 1)?;
    let done = fleet.succeeded(&name).await?;
    assert_eq!(fleet.adapter(&name)?.1, fleet.adapter(&undisturbed)?.1, "another adapter after the kill");

    let attempts = fleet.attempts(&name).await?;
    assert_eq!(attempts.len(), 2);
    assert_eq!(attempts[0].state(), pb::AttemptState::Lost);
    assert_eq!(attempts[1].state(), pb::AttemptState::Succeeded);
    let mut workers = attempts[1].workers.clone();
    // Who of the two registered first, and so has index 0, is theirs to race for.
    workers.sort_unstable();
    assert_eq!(workers, ["c", "d"]);
    let start = attempts[1].start_step;
    assert!(start >= 4 && start % 4 == 0, "it began after step {start}, which is no checkpoint");
    let points = fleet.points(&name).await?;
    let first =
        points.iter().find(|p| p.attempt == 2 && p.step > 0).context("no step of the second attempt")?;
    assert_eq!(first.step, start + 1);
    assert_eq!(done.step, 40);
    let steps: Vec<u64> = points.iter().map(|p| p.step).filter(|s| *s > 0).collect();
    assert_eq!(steps, (1..=40).collect::<Vec<_>>(), "every step has one point");

    // The losses are those of the undisturbed run, bit for bit.
    let losses = |points: &[pb::MetricPoint]| points.iter().map(|p| p.loss.to_bits()).collect::<Vec<_>>();
    assert_eq!(losses(&points), losses(&fleet.points(&undisturbed).await?));
    Ok(())
}
