//! The starts of all jobs that were given workers, at once.

use tracing::info;

use super::Leader;
use crate::{db::DbError, gang, leadership::Leadership, scheduler::Decision};

impl Leader {
    /// Starts every job that was given workers.
    pub(super) async fn start_all(
        &self,
        leadership: &Leadership,
        decisions: &[Decision],
    ) -> Result<(), DbError> {
        let starts: Vec<_> = decisions
            .iter()
            .filter_map(|decision| match decision {
                Decision::Start { job, places } => Some((*job, places.as_slice())),
                _ => None,
            })
            .collect();
        for job in gang::start_all(&self.pool, leadership, &starts).await? {
            info!(%job, "attempt started");
            self.hub.job_changed(job);
        }
        if !starts.is_empty() {
            self.hub.want_dispatch();
        }
        Ok(())
    }
}
