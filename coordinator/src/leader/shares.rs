//! The leader's look at what tenants may use and used, and at how long running jobs still train.

use std::time::Instant;

use super::Leader;
use crate::{db::DbError, queue, scheduler::Tenant, tenants, usage};

impl Leader {
    pub(super) async fn keep_shares(&mut self, now: Instant) -> Result<(), DbError> {
        let used = usage::decayed(&self.pool, Tenant::HALF_LIFE).await?;
        let shares = tenants::shares(&self.pool).await?;
        self.memory.tenants = shares
            .into_iter()
            .map(|(id, weight, max_workers)| Tenant {
                id,
                weight,
                used: used.get(&id).copied().unwrap_or_default(),
                max_workers: max_workers.map(|max| max as usize),
            })
            .collect();
        self.memory.sight.set_time_left(now, queue::time_left(&self.pool).await?);
        Ok(())
    }
}
