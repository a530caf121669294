//! What the leader writes for many jobs at once: their starts, and why others wait.

use std::time::Instant;

use tracing::info;

use super::{EXPLAIN_EVERY, Leader, due};
use crate::{
    db::DbError,
    gang,
    leadership::Leadership,
    queue::{self, QueueEntry},
    scheduler::Decision,
};

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

    /// Says of every job that waits why it does, where that changed; not at every look, since a queue that moves changes
    /// what all in it could say.
    pub(super) async fn explain_all(
        &mut self,
        now: Instant,
        decisions: &[Decision],
        entries: &[QueueEntry],
    ) -> Result<(), DbError> {
        if !due(&mut self.memory.explained, now, EXPLAIN_EVERY) {
            return Ok(());
        }
        let said: std::collections::HashMap<_, _> =
            entries.iter().map(|entry| (entry.job, entry.message.as_str())).collect();
        let mut reasons = Vec::new();
        for decision in decisions {
            if let Decision::Wait { job, reason, .. } = decision {
                let reason = reason.to_string();
                if said.get(job).is_some_and(|said| *said != reason) {
                    reasons.push((*job, reason));
                }
            }
        }
        queue::explain_all(&self.pool, &reasons).await?;
        for (job, _) in reasons {
            self.hub.job_changed(job);
        }
        Ok(())
    }
}
