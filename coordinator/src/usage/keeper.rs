//! When usage is counted: every so often, beside the scheduling, by the coordinator that leads.

use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::fold::fold;
use crate::db::within;

/// Between two counts. Nobody waits for one: what is not counted yet is read where it stands.
const EVERY: Duration = Duration::from_secs(10);

/// Counts beside its owner's work. Several may, as after a change of leaders: each thing is counted once.
#[derive(Debug, Default)]
pub struct Keeper {
    last: Option<Instant>,
    counting: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts to count when it is time, and the last count has ended.
    pub fn keep(&mut self, now: Instant, pool: &PgPool) {
        let busy = self.counting.as_ref().is_some_and(|counting| !counting.is_finished());
        if busy || self.last.is_some_and(|last| now.duration_since(last) < EVERY) {
            return;
        }
        self.last = Some(now);
        self.counting = Some(tokio::spawn(count(pool.clone())));
    }
}

async fn count(pool: PgPool) {
    let mut batches = 0_u32;
    loop {
        match within(fold(&pool)).await {
            Ok(true) => batches += 1,
            Ok(false) => break,
            Err(error) => {
                warn!(%error, "usage not counted; tried again in {} s", EVERY.as_secs());
                return;
            }
        }
    }
    if batches > 0 {
        info!(batches, "usage counted");
    }
}
