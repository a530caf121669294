//! What the leader does so that no table only grows: makes partitions ahead, drops old ones, thins and deletes what
//! ended long ago.
//!
//! It runs beside the scheduling loop and in small transactions, so that no job waits for it. Each begins by asking
//! whether the leadership still holds, and gives up soon where it would have to wait for a lock.

mod ended;
mod partitions;
mod retention;
mod thin;

pub use retention::Retention;
use sqlx::PgPool;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    db::{DbError, Tx, within},
    leadership::Leadership,
};

/// Transactions of one kind in one round; what is left then is left to the next.
const MOST_BATCHES: usize = 200;

/// The loop of a coordinator that does this while it leads.
#[derive(Debug)]
pub struct Housekeeper {
    pool: PgPool,
    leads: watch::Receiver<Option<Leadership>>,
    keep: Retention,
}

/// One leader's way to the database.
#[derive(Clone, Copy, Debug)]
struct Desk<'a> {
    pool: &'a PgPool,
    leadership: Leadership,
}

impl Housekeeper {
    /// One that works while `leads` says so.
    pub fn new(pool: PgPool, leads: watch::Receiver<Option<Leadership>>, keep: Retention) -> Self {
        Self { pool, leads, keep }
    }

    /// Runs until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        // The first round begins with the leadership: it makes the partitions that the next jobs need.
        while let Some(Some(leadership)) = shutdown.run_until_cancelled(self.leading()).await {
            let desk = Desk { pool: &self.pool, leadership };
            if shutdown.run_until_cancelled(round(desk, &self.keep)).await.is_none() {
                return;
            }
            if shutdown.run_until_cancelled(tokio::time::sleep(self.keep.every)).await.is_none() {
                return;
            }
        }
    }

    /// Waits for the leadership; `None`: nobody will lead any more.
    async fn leading(&mut self) -> Option<Leadership> {
        self.leads.wait_for(Option::is_some).await.ok().and_then(|leadership| *leadership)
    }
}

/// Does everything once. What fails is told, and does not keep the rest from being done.
async fn round(desk: Desk<'_>, keep: &Retention) {
    tell("partitions made", partitions::make(desk).await);
    for (table, keep, most) in
        [("job_events", keep.events, keep.most_events), ("metric_points", keep.points, keep.most_points)]
    {
        tell("partitions dropped", partitions::drop_old(desk, table, keep).await);
        tell("partitions dropped for their number of rows", partitions::drop_beyond(desk, table, most).await);
    }
    tell("points thinned out", thin::points(desk, keep.whole_points).await);
    tell("checkpoints forgotten", repeat(|| ended::checkpoints(desk)).await);
    tell("jobs forgotten", ended::jobs(desk, keep).await);
    tell("sweeps forgotten", repeat(|| ended::sweeps(desk, keep.jobs)).await);
    tell("workers forgotten", repeat(|| ended::workers(desk, keep.workers)).await);
}

fn tell(what: &'static str, done: Result<u64, DbError>) {
    match done {
        Ok(0) => {}
        Ok(count) => info!(count, what, "housekeeping"),
        Err(error) => warn!(%error, what, "housekeeping was kept from its work; tried again"),
    }
}

/// Repeats a batch until one finds nothing, or until it is enough for a round; gives the sum.
async fn repeat<F: Future<Output = Result<u64, DbError>>>(batch: impl Fn() -> F) -> Result<u64, DbError> {
    let mut sum = 0;
    for _ in 0..MOST_BATCHES {
        match within(batch()).await? {
            0 => break,
            count => sum += count,
        }
        // Whoever waits for the disk or a connection goes first.
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    Ok(sum)
}

impl Desk<'_> {
    /// Begins a transaction that ends by itself rather than hold anybody up. `None`: another coordinator leads.
    async fn begin(&self) -> Result<Option<Tx>, DbError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query!(
            "select set_config('lock_timeout', '1s', true) as lock, set_config('statement_timeout', '9s', true) as statement"
        )
        .fetch_one(&mut *tx)
        .await?;
        Ok(self.leadership.holds(&mut tx).await?.then_some(tx))
    }
}
