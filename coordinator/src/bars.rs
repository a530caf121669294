//! Who gets no place in an attempt for now: workers that were expelled from it, or could not join it.
//!
//! Times are the leader's own clock's. A new leader begins to count when it first sees that a place has ended, so that
//! a bar may last longer over a change of leaders, never shorter.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use crate::ids::{JobId, WorkerId};

/// The first bar; each further one of the same worker in the same attempt lasts twice as long as the one before.
pub const FIRST_BAR: Duration = Duration::from_secs(60);
/// Doublings that are counted.
const MAX_DOUBLINGS: u32 = 10;

/// A place that ended, in an attempt that is live, whose worker is there (maybe as another process).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// The place's number.
    pub place: u32,
    /// Who has the name of its holder now.
    pub worker: WorkerId,
    /// How it ended.
    pub how: How,
}

/// How a place ended, as far as it matters for who may come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The gang went on without it, or it was lost before it had joined.
    Troubled,
    /// What it loaded is not what the gang has.
    Unfit,
}

/// What a leader remembers of ended places.
#[derive(Debug, Default)]
pub struct Bars {
    seen: HashMap<(JobId, u32, u32), Instant>,
}

impl Bars {
    /// The workers barred from each job's live attempt at `now`, given all places that ended in one.
    pub fn at(&mut self, now: Instant, ended: &[Ended]) -> HashMap<JobId, BTreeSet<WorkerId>> {
        let key = |e: &Ended| (e.job, e.attempt, e.place);
        let before = std::mem::take(&mut self.seen);
        self.seen = ended.iter().map(|e| (key(e), before.get(&key(e)).copied().unwrap_or(now))).collect();
        let mut troubles: HashMap<(JobId, WorkerId), Vec<Instant>> = HashMap::new();
        let mut barred: HashMap<JobId, BTreeSet<WorkerId>> = HashMap::new();
        for e in ended {
            match e.how {
                How::Unfit => {
                    barred.entry(e.job).or_default().insert(e.worker);
                }
                How::Troubled => troubles.entry((e.job, e.worker)).or_default().push(self.seen[&key(e)]),
            }
        }
        for ((job, worker), times) in troubles {
            let last = times.iter().max().copied().unwrap_or(now);
            if now.duration_since(last) < bar(times.len()) {
                barred.entry(job).or_default().insert(worker);
            }
        }
        barred
    }
}

/// How long the nth bar lasts.
fn bar(n: usize) -> Duration {
    let doublings = u32::try_from(n.saturating_sub(1)).unwrap_or(MAX_DOUBLINGS).min(MAX_DOUBLINGS);
    FIRST_BAR * 2u32.pow(doublings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(job: JobId, place: u32, worker: WorkerId, how: How) -> Ended {
        Ended { job, attempt: 1, place, worker, how }
    }

    #[test]
    fn each_bar_of_a_worker_lasts_twice_as_long_as_the_one_before() {
        let (job, a, b) = (JobId::new(), WorkerId::random(), WorkerId::random());
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut bars = Bars::default();
        let once = [ended(job, 1, a, How::Troubled)];
        let only_a = HashMap::from([(job, BTreeSet::from([a]))]);
        assert_eq!(bars.at(at(0), &once), only_a);
        assert_eq!(bars.at(at(59), &once), only_a);
        assert_eq!(bars.at(at(60), &once), HashMap::new());
        let twice = [once[0], ended(job, 5, a, How::Troubled)];
        assert_eq!(bars.at(at(100), &twice), only_a);
        assert_eq!(bars.at(at(219), &twice), only_a);
        assert_eq!(bars.at(at(220), &twice), HashMap::new());
        // Another worker's first bar is short, whatever befell this one.
        let other = [twice[0], twice[1], ended(job, 6, b, How::Troubled)];
        assert_eq!(bars.at(at(230), &other), HashMap::from([(job, BTreeSet::from([b]))]));
        assert_eq!(bars.at(at(290), &other), HashMap::new());
    }

    #[test]
    fn who_loaded_something_else_never_comes_back_into_the_attempt() {
        let (job, a) = (JobId::new(), WorkerId::random());
        let (mut bars, start) = (Bars::default(), Instant::now());
        let unfit = [ended(job, 1, a, How::Unfit)];
        for days in 0..3 {
            let now = start + Duration::from_secs(86_400 * days);
            assert_eq!(bars.at(now, &unfit), HashMap::from([(job, BTreeSet::from([a]))]));
        }
        assert_eq!(bars.at(start, &[]), HashMap::new(), "the next attempt is another matter");
    }

    #[test]
    fn bars_do_not_grow_without_limit() {
        assert_eq!(bar(1), FIRST_BAR);
        assert_eq!(bar(4), FIRST_BAR * 8);
        assert_eq!(bar(10_000), FIRST_BAR * 1024);
    }
}
