//! What is said of those that wait: their place in the queue, and when they may start.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use super::{
    Decision, Reason,
    free::{Free, Want},
    order::{Accounts, Line},
};
use crate::ids::JobId;

/// Jobs whose start is forecast.
const FORECAST: usize = 1000;
/// Places are exact up to about this one; behind it, jobs of a tenant are counted by more than one at a time.
const EXACT: usize = 256;

/// Why the jobs of a group wait.
#[derive(Clone, Debug)]
pub(super) struct Closed {
    /// The first one.
    pub(super) first: Reason,
    /// Those behind it.
    pub(super) rest: Reason,
    /// When the first one may start, where that is known.
    pub(super) estimate: Option<Duration>,
}

/// When workers come free: the jobs that wait are let in one after the other.
pub(super) struct Forecast {
    now: Duration,
    free: usize,
    releases: BinaryHeap<Reverse<(Duration, usize)>>,
    left: usize,
}

impl Forecast {
    /// So many workers are free now, and others at these times.
    pub(super) fn new(free: usize, releases: impl Iterator<Item = Duration>) -> Self {
        let releases = releases.map(|at| Reverse((at, 1))).collect();
        Self { now: Duration::ZERO, free, releases, left: FORECAST }
    }

    /// When a job of `min` workers may start, after those that were asked about before it. `None` from the first one on
    /// whose workers nobody knows.
    fn start(&mut self, min: usize, run: Option<Duration>) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        while self.free < min {
            let Some(Reverse((at, workers))) = self.releases.pop() else {
                self.left = 0;
                return None;
            };
            self.now = self.now.max(at);
            self.free += workers;
        }
        self.free -= min;
        self.releases.extend(run.map(|run| Reverse((self.now + run, min))));
        Some(self.now)
    }
}

/// Adds a decision for each job that is still in `line`, behind those of whom is `said` why they wait.
pub(super) fn waits(
    decisions: &mut Vec<Decision>,
    mut line: Line<'_>,
    accounts: &mut Accounts,
    closed: &[Option<Closed>],
    (wants, free): (&[Want], &Free<'_>),
    mut forecast: Forecast,
    said: impl Iterator<Item = (JobId, Reason)>,
) {
    let mut position = 0;
    for (job, reason) in said {
        position += 1;
        decisions.push(Decision::Wait { job, reason, position, estimate: None });
    }
    let mut first: Vec<bool> = vec![true; closed.len()];
    while let Some((group, _)) = line.pop() {
        let jobs = line.take(group, 1 + position / EXACT);
        let why = closed[group].as_ref().expect("a group leaves the line when it is closed");
        let min = line.min(group);
        let stands_aside = matches!(why.first, Reason::TooSmall { .. } | Reason::Quota { .. });
        for job in jobs {
            let is_first = std::mem::take(&mut first[group]);
            let forecast = if stands_aside || !free.is_any(&wants[group]) {
                None
            } else {
                forecast.start(min, job.run_estimate)
            };
            position += 1;
            decisions.push(Decision::Wait {
                job: job.job,
                reason: if is_first { why.first.clone() } else { why.rest.clone() },
                position,
                estimate: why.estimate.filter(|_| is_first).or(forecast),
            });
        }
        accounts.give(line.tenant(group), min * jobs.len());
        line.put_back(group, false, accounts);
    }
}
