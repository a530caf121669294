//! The leader's look at quotas of worker-seconds: whose jobs are held back, and what they are told.

use super::Leader;
use crate::{db::DbError, queue, quota};

impl Leader {
    pub(super) async fn keep_budgets(&mut self) -> Result<(), DbError> {
        let over = quota::over_budget(&self.pool).await?;
        for (tenant, budget) in &over {
            for job in queue::explain_tenant(&self.pool, *tenant, &budget.to_string()).await? {
                self.hub.job_changed(job);
            }
        }
        self.memory.over_budget = over.into_keys().collect();
        Ok(())
    }
}
