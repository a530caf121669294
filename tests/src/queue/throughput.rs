//! Jobs a second from submission to success, and submissions a second.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use lorafleet_postgres::Postgres;
use tokio::time::Instant;

use super::{noop::Workers, rig::Rig};

/// What came of a run.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// From the first submission to the last acknowledged end.
    pub jobs_per_s: f64,
    /// Until the last submission was answered.
    pub submitted_per_s: f64,
}

/// Sends `jobs` jobs one by one from `clients` clients at once, each on a connection of its own, to `workers` workers;
/// each job needs one.
///
/// # Errors
/// When a job is refused, or one does not succeed.
pub async fn whole(postgres: &Postgres, jobs: usize, clients: usize, workers: usize) -> Result<Rates> {
    let rig = Rig::start(postgres, &[]).await?;
    let fleet = Workers::join(&rig, workers, Duration::from_secs(2)).await?;
    let start = Instant::now();
    let sending = submit_all(&rig, jobs, clients);
    let (submitted_per_s, ()) = tokio::try_join!(sending, fleet.tally.until_finished(jobs))?;
    let jobs_per_s = jobs as f64 / start.elapsed().as_secs_f64();
    rig.check_rows(jobs).await?;
    let succeeded = rig.count("select count(*) from jobs where state = 'SUCCEEDED'").await?;
    ensure!(usize::try_from(succeeded) == Ok(jobs), "{succeeded} of {jobs} jobs succeeded");
    ensure!(fleet.tally.lost() == 0, "{} streams ended", fleet.tally.lost());
    Ok(Rates { jobs_per_s, submitted_per_s })
}

/// Submissions a second on a coordinator without workers.
///
/// # Errors
/// When a job is refused.
pub async fn submissions(postgres: &Postgres, jobs: usize, clients: usize) -> Result<f64> {
    let rig = Rig::start(postgres, &[]).await?;
    submit_all(&rig, clients, clients).await?;
    submit_all(&rig, jobs, clients).await
}

/// Submits jobs one by one from several clients; how many a second.
///
/// # Errors
/// When one is refused.
pub async fn submit_all(rig: &Rig, jobs: usize, clients: usize) -> Result<f64> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut connections = Vec::with_capacity(clients);
    for _ in 0..clients {
        connections.push(rig.jobs().await?);
    }
    let start = Instant::now();
    let clients = connections.into_iter().map(|mut client| {
        let (next, request) = (Arc::clone(&next), rig.request());
        tokio::spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < jobs {
                client.create_job(request.clone()).await?;
            }
            Ok::<_, tonic::Status>(())
        })
    });
    for done in try_join_all(clients).await? {
        done?;
    }
    Ok(jobs as f64 / start.elapsed().as_secs_f64())
}
