//! Whether every accepted job ends well although Postgres is restarted under load, and how soon jobs end again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use lorafleet_postgres::Postgres;
use tokio::time::{Instant, sleep};

use super::{noop::Workers, rig::Rig};

/// A client that is refused tries again for so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came of a run with a restart in its middle.
#[derive(Clone, Copy, Debug)]
pub struct Recovery {
    /// Of the jobs that were accepted, the part that succeeded.
    pub succeeded: f64,
    /// Seconds from the server's return to the next acknowledged end of a job.
    pub resumed_s: f64,
}

/// Runs `jobs` jobs as [`super::throughput::whole`] does, and restarts the server when a third of them are done. Clients
/// repeat what was not answered, under one request_id.
///
/// # Errors
/// When the server does not come back, nothing ends any more, or a job was stored twice.
pub async fn recovery(
    postgres: &mut Postgres,
    jobs: usize,
    clients: usize,
    workers: usize,
) -> Result<Recovery> {
    let rig = Rig::start(postgres, &[]).await?;
    let fleet = Workers::join(&rig, workers, Duration::from_secs(2)).await?;
    let sending = submit_all(&rig, jobs, clients);
    let restarting = async {
        fleet.tally.until_finished(jobs / 3).await?;
        tokio::task::block_in_place(|| postgres.stop().and_then(|()| postgres.start_again()))?;
        let (back, before) = (Instant::now(), fleet.tally.finished());
        fleet.tally.until_finished(before + 1).await?;
        Ok::<_, anyhow::Error>(back.elapsed().as_secs_f64())
    };
    let (accepted, resumed_s, ()) = tokio::try_join!(sending, restarting, fleet.tally.until_finished(jobs))?;
    rig.check_rows(accepted).await?;
    let succeeded = rig.count("select count(*) from jobs where state = 'SUCCEEDED'").await?;
    Ok(Recovery { succeeded: succeeded as f64 / accepted as f64, resumed_s })
}

/// How many were accepted.
async fn submit_all(rig: &Rig, jobs: usize, clients: usize) -> Result<usize> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut sending = Vec::with_capacity(clients);
    for _ in 0..clients {
        let (mut client, next, request) = (rig.jobs().await?, Arc::clone(&next), rig.request());
        sending.push(tokio::spawn(async move {
            let mut accepted = 0;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= jobs {
                    return Ok(accepted);
                }
                let mut request = request.clone();
                request.request_id = format!("00000000-0000-4000-8000-{number:012x}");
                let start = Instant::now();
                while let Err(status) = client.create_job(request.clone()).await {
                    if start.elapsed() > PATIENCE {
                        return Err(status).context("a job was not accepted in time");
                    }
                    sleep(Duration::from_millis(50)).await;
                }
                accepted += 1;
            }
        }));
    }
    let mut accepted = 0;
    for client in try_join_all(sending).await? {
        accepted += client?;
    }
    Ok(accepted)
}
