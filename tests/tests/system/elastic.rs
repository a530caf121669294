//! A gang whose members are killed, frozen, sent away and joined by others goes on from its last step, to the same
//! adapter, bit for bit; no checkpoint is read while one member lives.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lorafleet_proto::v1 as pb;
use lorafleet_tests::{Fleet, JobFile, Options};
use rustix::process::Signal;

/// No checkpoint is written before the last, so that a step can only come from a member that lives.
fn job(name: &'static str, workers: (u32, u32)) -> JobFile {
    JobFile { name, steps: 60, eval_every: 25, workers, ..JobFile::default() }
}

/// A fleet in which worker "a" has trained the job alone, to compare with.
struct Bed {
    fleet: Fleet,
    undisturbed: String,
}

impl Bed {
    async fn new(alone: JobFile) -> Result<Bed> {
        let mut fleet = Fleet::start(Options::default()).await?;
        fleet.start_worker("a", 1)?;
        let undisturbed = fleet.submit(&JobFile { name: "undisturbed", workers: (1, 1), ..alone })?;
        fleet.succeeded(&undisturbed).await?;
        Ok(Bed { fleet, undisturbed })
    }

    async fn kinds(&self, name: &str) -> Result<Vec<String>> {
        Ok(self.fleet.events(name).await?.into_iter().map(|event| event.kind).collect())
    }

    /// The job's adapter and losses are those of the undisturbed run, in one attempt that read no checkpoint.
    async fn ends_as_undisturbed(&self, name: &str) -> Result<pb::Job> {
        let fleet = &self.fleet;
        let done = fleet.succeeded(name).await?;
        let history = fleet.history(name).await?;
        ensure!(fleet.adapter(name)?.1 == fleet.adapter(&self.undisturbed)?.1, "another adapter\n{history}");
        let (ours, theirs) = (fleet.points(name).await?, fleet.points(&self.undisturbed).await?);
        let losses = |points: &[pb::MetricPoint]| -> Vec<(u64, u64, Option<u64>)> {
            let point = |p: &pb::MetricPoint| (p.step, p.loss.to_bits(), p.eval_loss.map(f64::to_bits));
            points.iter().map(point).collect()
        };
        ensure!(losses(&ours) == losses(&theirs), "other losses\n{history}");
        ensure!(fleet.attempts(name).await?.len() == 1, "another attempt\n{history}");
        ensure!(
            !self.kinds(name).await?.iter().any(|kind| kind == "resumed"),
            "a checkpoint was read\n{history}"
        );
        Ok(done)
    }

    async fn at_step(&self, name: &str, step: u64) -> Result<pb::Job> {
        self.fleet.job_when(name, &format!("step {step}"), |job| job.step >= step).await
    }

    async fn of_size(&self, name: &str, size: u32) -> Result<pb::Job> {
        self.fleet.job_when(name, &format!("a gang of {size}"), |job| job.world_size == size).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_are_killed_and_the_last_goes_on() -> Result<()> {
    let mut bed = Bed::new(job("", (1, 1))).await?;
    bed.fleet.start_worker("b", 1)?;
    bed.fleet.start_worker("c", 1)?;
    let name = bed.fleet.submit(&job("killed", (3, 3)))?;
    bed.at_step(&name, 5).await?;
    bed.fleet.worker("a")?.kill()?;
    let two = bed.of_size(&name, 2).await?;
    ensure!(two.generation == 2 && two.step < 50, "{two:?}");
    bed.at_step(&name, two.step + 5).await?;
    bed.fleet.worker("c")?.kill()?;
    bed.of_size(&name, 1).await?;
    let done = bed.ends_as_undisturbed(&name).await?;
    ensure!(done.generation == 3 && done.infrastructure_failures == 0, "{done:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn newcomers_join_at_a_step_boundary() -> Result<()> {
    let long = JobFile { steps: 120, ..job("", (1, 1)) };
    let mut bed = Bed::new(long.clone()).await?;
    let name = bed.fleet.submit(&JobFile { name: "grown", workers: (1, 3), ..long })?;
    bed.at_step(&name, 3).await?;
    bed.fleet.start_worker("b", 1)?;
    bed.fleet.start_worker("c", 1)?;
    bed.of_size(&name, 3).await?;
    // The one that began is not needed any more.
    bed.fleet.worker("a")?.kill()?;
    bed.of_size(&name, 2).await?;
    bed.ends_as_undisturbed(&name).await?;
    let kinds = bed.kinds(&name).await?;
    ensure!(kinds.iter().any(|kind| kind == "joined"), "{kinds:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_member_leaves_and_the_others_go_on() -> Result<()> {
    let mut bed = Bed::new(job("", (1, 1))).await?;
    bed.fleet.start_worker("b", 1)?;
    let name = bed.fleet.submit(&job("left", (2, 2)))?;
    bed.at_step(&name, 5).await?;
    let status = bed.fleet.worker("a")?.terminate(Duration::from_secs(60))?;
    ensure!(status.success(), "the worker ended with {status}");
    bed.ends_as_undisturbed(&name).await?;
    let kinds = bed.kinds(&name).await?;
    ensure!(kinds.iter().any(|kind| kind == "left"), "{kinds:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_member_is_expelled_and_comes_back_as_new() -> Result<()> {
    let long = JobFile { steps: 160, ..job("", (1, 1)) };
    let mut bed = Bed::new(long.clone()).await?;
    bed.fleet.start_worker("b", 1)?;
    let name = bed.fleet.submit(&JobFile { name: "frozen", workers: (2, 2), ..long })?;
    bed.at_step(&name, 5).await?;
    bed.fleet.worker("b")?.signal(Signal::STOP)?;
    bed.of_size(&name, 1).await?;
    bed.fleet.worker("b")?.signal(Signal::CONT)?;
    bed.of_size(&name, 2).await?;
    bed.ends_as_undisturbed(&name).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_higher_priority_takes_workers_away() -> Result<()> {
    let long = JobFile { steps: 120, ..job("", (1, 1)) };
    let mut bed = Bed::new(long.clone()).await?;
    bed.fleet.start_worker("b", 1)?;
    let low = bed.fleet.submit(&JobFile { name: "low", workers: (1, 2), ..long })?;
    bed.of_size(&low, 2).await?;
    bed.at_step(&low, 3).await?;
    let high =
        bed.fleet.submit(&JobFile { name: "high", priority: 5, workers: (1, 1), ..job("", (1, 1)) })?;
    bed.fleet.succeeded(&high).await?;
    let during = bed.fleet.events(&low).await?;
    ensure!(during.iter().any(|event| event.kind == "left"), "{during:?}");
    bed.ends_as_undisturbed(&low).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn five_micro_batches_on_three_with_dropout_in_bf16_survive_a_kill() -> Result<()> {
    let uneven = JobFile {
        global_batch: 10,
        micro_batches: 5,
        dropout: 0.1,
        precision: "bf16",
        steps: 40,
        ..job("", (1, 1))
    };
    let mut bed = Bed::new(uneven.clone()).await?;
    bed.fleet.start_worker("b", 2)?;
    bed.fleet.start_worker("c", 1)?;
    let name = bed.fleet.submit(&JobFile { name: "uneven", workers: (3, 3), ..uneven })?;
    bed.at_step(&name, 4).await?;
    bed.fleet.worker("b")?.kill()?;
    bed.ends_as_undisturbed(&name).await?;
    let points = bed.fleet.points(&name).await?;
    let last = points.last().context("no points")?;
    ensure!(last.step == 40 && last.generation >= 2, "{last:?}");
    Ok(())
}
