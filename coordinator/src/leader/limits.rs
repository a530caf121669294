//! The leader's look at clocks and dependencies: what comes due, what is over, what follows from the end of others.

use tracing::info;

use super::Leader;
use crate::{db::DbError, gang, leadership::Leadership, queue};

impl Leader {
    pub(super) async fn keep_limits(&self, leadership: &Leadership) -> Result<(), DbError> {
        for overdue in queue::overdue(&self.pool).await? {
            if gang::end_overdue(&self.pool, leadership, &overdue).await? {
                info!(job = %overdue.job, message = overdue.message, "time is over");
                self.changed(overdue.job);
            }
        }
        for job in queue::unsettled(&self.pool).await? {
            if gang::settle(&self.pool, leadership, job).await? {
                self.changed(job);
            }
        }
        for job in queue::due(&self.pool).await? {
            if gang::release(&self.pool, leadership, job).await? {
                self.changed(job);
            }
        }
        Ok(())
    }
}
