//! What jobs that wait are told: why, at which place, and until when about.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{Leader, due};
use crate::{
    db::DbError,
    ids::JobId,
    queue::{self, QueueEntry, Said},
    scheduler::{Decision, Words},
};

/// Why jobs wait is written this often.
const REASONS: Duration = Duration::from_millis(250);
/// Where they stand in the queue is written this often: a queue that moves changes the place of all in it.
const PLACES: Duration = Duration::from_secs(5);

impl Leader {
    /// Says of every job that waits why it does, where that changed; and where it stands, but not so often.
    pub(super) async fn explain(
        &mut self,
        now: Instant,
        decisions: &[Decision],
        entries: &[QueueEntry],
    ) -> Result<(), DbError> {
        if !due(&mut self.memory.explained, now, REASONS) {
            return Ok(());
        }
        let places = due(&mut self.memory.placed, now, PLACES);
        let before: HashMap<JobId, &str> =
            entries.iter().map(|entry| (entry.job, entry.message.as_str())).collect();
        let said: Vec<Said> =
            decisions.iter().filter_map(|decision| say(decision, &before, places)).collect();
        queue::explain(&self.pool, &said).await?;
        for said in said {
            self.hub.job_changed(said.job);
        }
        Ok(())
    }
}

/// What a job is told anew, if anything: `places`, also where only its place or the time changed.
fn say(decision: &Decision, before: &HashMap<JobId, &str>, places: bool) -> Option<Said> {
    let Decision::Wait { job, reason, position, estimate } = decision else { return None };
    let known = before.get(job)?;
    let words = Words { reason, position: *position, estimate: *estimate }.to_string();
    let same = if places { **known == words } else { is_about(known, &reason.to_string()) };
    (!same).then(|| Said {
        job: *job,
        words,
        position: u32::try_from(*position).unwrap_or(u32::MAX),
        estimate: *estimate,
    })
}

/// Whether words give this reason, whatever place they name.
fn is_about(words: &str, reason: &str) -> bool {
    words.strip_prefix(reason).is_some_and(|rest| rest.is_empty() || rest.starts_with(';'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Reason;

    #[test]
    fn a_new_place_alone_is_told_seldom() {
        let job = JobId::new();
        let wait = |earlier, position| Decision::Wait {
            job,
            reason: Reason::Turn { earlier },
            position,
            estimate: None,
        };
        let tell = |decision: &Decision, before: &str, places| {
            say(decision, &HashMap::from([(job, before)]), places).map(|said| (said.words, said.position))
        };
        let (words, place) = tell(&wait(1, 3), "", false).unwrap();
        assert_eq!(place, 3);
        assert_eq!(tell(&wait(1, 2), &words, false), None);
        assert_eq!(tell(&wait(1, 2), &words, true).unwrap().1, 2);
        assert_eq!(tell(&wait(1, 3), &words, true), None);
        assert_eq!(tell(&wait(2, 3), &words, false).unwrap().1, 3);
    }
}
