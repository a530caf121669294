//! An idle fleet: how soon a job is assigned, and what heartbeats cost.

use std::time::Duration;

use anyhow::Result;
use lorafleet_postgres::Postgres;
use tokio::time::Instant;

use super::{noop::Workers, rig::Rig};

/// Seconds from sending a submission to the worker's receipt of the assignment, of `jobs` jobs one after another,
/// sorted.
///
/// # Errors
/// When a job is refused or not assigned.
pub async fn assignments(rig: &Rig, workers: usize, jobs: usize) -> Result<Vec<f64>> {
    let fleet = Workers::join(rig, workers, Duration::from_secs(2)).await?;
    let mut client = rig.jobs().await?;
    let mut seconds = Vec::with_capacity(jobs);
    for number in 0..jobs {
        let start = Instant::now();
        let job = client.create_job(rig.request()).await?.into_inner().name;
        seconds.push((fleet.tally.assigned(&job).await? - start).as_secs_f64());
        fleet.tally.until_finished(number + 1).await?;
        // Not in step with anything that is done at intervals.
        tokio::time::sleep(Duration::from_millis(7 + 13 * (number as u64 % 7))).await;
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds)
}

/// What heartbeats cost.
#[derive(Clone, Copy, Debug)]
pub struct Beats {
    /// Processor seconds of the coordinator a second.
    pub cores: f64,
    /// The same of its sessions in Postgres.
    pub postgres_cores: f64,
    /// Workers that lost their lease or their stream.
    pub missed: usize,
}

/// Lets `workers` workers that send a heartbeat every 5 s stand idle for `time`.
///
/// # Errors
/// When one is refused.
pub async fn beats(postgres: &Postgres, workers: usize, time: Duration) -> Result<Beats> {
    let rig = Rig::start(postgres, &["--heartbeat", "5s", "--lease", "15s"]).await?;
    let fleet = Workers::join(&rig, workers, Duration::from_secs(5)).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (before, sessions, start) =
        (rig.coordinator_seconds()?, rig.session_seconds().await?, Instant::now());
    tokio::time::sleep(time).await;
    let seconds = start.elapsed().as_secs_f64();
    let cores = (rig.coordinator_seconds()? - before) / seconds;
    let postgres_cores = (rig.session_seconds().await? - sessions).max(0.0) / seconds;
    let live = rig.count("select count(*) from workers where state = 'LIVE'").await?;
    let gone = workers.saturating_sub(usize::try_from(live)?);
    Ok(Beats { cores, postgres_cores, missed: gone.max(fleet.tally.lost()) })
}
