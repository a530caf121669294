//! Collects what unfinished checkpoints of ended jobs left in the store.

use std::{collections::HashSet, time::Duration};

use lorafleet_store::{Store, sweep_torn};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    db::{DbError, within},
    ids::JobId,
};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(600);

/// Looks after jobs that ended some time ago, so that no worker writes their checkpoints any more. Every coordinator
/// does: what one has deleted the next does not find. (While a job lives, its workers sweep after themselves.)
pub struct Sweeper {
    pool: PgPool,
    store: Store,
    /// Ended jobs that were looked after.
    done: HashSet<JobId>,
}

impl Sweeper {
    /// One that has looked after no job yet.
    pub fn new(pool: PgPool, store: Store) -> Self {
        Self { pool, store, done: HashSet::new() }
    }

    /// Runs until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
            let Some(swept) = shutdown.run_until_cancelled(self.sweep(EVERY)).await else { break };
            if let Err(error) = swept {
                warn!(%error, "unfinished checkpoints of ended jobs not looked for; tried again");
            }
        }
    }

    /// Sweeps after the jobs that ended at least `rest` ago.
    ///
    /// # Errors
    /// The database.
    pub async fn sweep(&mut self, rest: Duration) -> Result<(), DbError> {
        let ended = within(ended(&self.pool, rest)).await?;
        self.done.retain(|job| ended.contains(job));
        for job in ended {
            let Ok(in_store) = job.to_string().parse() else { continue };
            if self.done.contains(&job) {
                continue;
            }
            match sweep_torn(&self.store, &in_store, |_| true).await {
                Ok(swept) => {
                    if !swept.is_empty() {
                        info!(%job, checkpoints = swept.len(), "unfinished checkpoints deleted");
                    }
                    self.done.insert(job);
                }
                Err(error) => warn!(%job, %error, "unfinished checkpoints not deleted; tried again"),
            }
        }
        Ok(())
    }
}

/// The jobs that ended within the last day, but not within the last moments.
async fn ended(pool: &PgPool, rest: Duration) -> Result<Vec<JobId>, DbError> {
    let jobs = sqlx::query_scalar!(
        "select job_id from jobs
         where end_time < now() - make_interval(secs => $1) and end_time > now() - interval '1 day'
         order by end_time desc limit 1000",
        rest.as_secs_f64(),
    )
    .fetch_all(pool)
    .await?;
    Ok(jobs.into_iter().map(JobId).collect())
}
