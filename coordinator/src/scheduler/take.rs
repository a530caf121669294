//! What a waiting job takes from running ones.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use super::{Decision, Gang, Queued, Seat, Standing, Worker};
use crate::ids::{JobId, WorkerId};

/// Busy workers that come free, and those that could be made to.
pub(super) struct Supply<'a> {
    gangs: &'a [Gang],
    /// Workers that take work.
    takes_work: HashSet<WorkerId>,
    settle: Duration,
    /// Workers about to come free that nobody in the queue counts on yet.
    coming: BTreeSet<WorkerId>,
    /// Those whose places were asked for before, by jobs that go on.
    given: BTreeSet<WorkerId>,
    /// What is asked for in this decision: gang, place, for whom.
    taken: Vec<(usize, u32, JobId)>,
}

impl<'a> Supply<'a> {
    /// What `gangs` hold.
    pub(super) fn new(gangs: &'a [Gang], fleet: &[Worker], settle: Duration) -> Self {
        let takes_work: HashSet<WorkerId> = fleet.iter().map(|worker| worker.worker).collect();
        let (mut coming, mut given) = (BTreeSet::new(), BTreeSet::new());
        for gang in gangs {
            let ends = gang.standing == Standing::Ending;
            let seats = gang.seats.iter().filter(|seat| ends || seat.leaving);
            let workers = seats.map(|seat| seat.worker).filter(|worker| takes_work.contains(worker));
            let list = if ends { &mut coming } else { &mut given };
            list.extend(workers);
        }
        coming.extend(given.iter().copied());
        Self { gangs, takes_work, settle, coming, given, taken: Vec::new() }
    }

    /// Finds the workers that `job` lacks beside the `reserved` ones: among those that come free, then by taking.
    /// `None`, and nothing is taken, when there are not enough; otherwise how many are given back for it by jobs that
    /// go on.
    pub(super) fn cover(&mut self, job: &Queued, reserved: &BTreeSet<WorkerId>) -> Option<usize> {
        let mut workers = reserved.clone();
        for worker in &self.coming {
            if workers.len() < job.min {
                workers.insert(*worker);
            }
        }
        let before = self.taken.len();
        while workers.len() < job.min {
            let Some((gang, seat)) = self.next_victim(job, &workers) else {
                self.taken.truncate(before);
                return None;
            };
            workers.insert(seat.worker);
            self.taken.push((gang, seat.place, job.job));
        }
        let given = self.given.intersection(&workers).filter(|worker| self.coming.contains(worker)).count();
        self.coming.retain(|worker| !workers.contains(worker));
        Some(given + self.taken.len() - before)
    }

    /// The place to take next: of the lowest priority, then of the gang with most above its minimum, then of the
    /// youngest gang; its newest place that helps.
    fn next_victim(&self, job: &Queued, workers: &BTreeSet<WorkerId>) -> Option<(usize, Seat)> {
        let mut order: Vec<(i32, Reverse<usize>, Reverse<usize>)> = self
            .gangs
            .iter()
            .enumerate()
            .filter(|(_, gang)| gang.priority <= job.priority && gang.standing != Standing::Ending)
            .map(|(i, gang)| (gang.priority, Reverse(self.above_min(i, job)), Reverse(i)))
            .filter(|(_, above, _)| above.0 > 0)
            .collect();
        order.sort_unstable();
        order.into_iter().find_map(|(.., Reverse(i))| {
            let gang = &self.gangs[i];
            let helps = |seat: &&Seat| {
                self.stays(i, seat)
                    && !self.is_kept(gang, seat, job)
                    && self.takes_work.contains(&seat.worker)
                    && !workers.contains(&seat.worker)
            };
            gang.seats.iter().filter(helps).max_by_key(|seat| seat.place).map(|seat| (i, *seat))
        })
    }

    /// Places of a gang that could be taken for a job without going below its minimum.
    fn above_min(&self, i: usize, job: &Queued) -> usize {
        let gang = &self.gangs[i];
        let stay = || gang.seats.iter().filter(|seat| self.stays(i, seat));
        let kept = stay().filter(|seat| self.is_kept(gang, seat, job)).count();
        // The minimum without the new ones: otherwise an old member would be taken in place of a new one.
        stay().count().saturating_sub(gang.min + kept)
    }

    /// It has just joined, and is not given to an equal.
    fn is_kept(&self, gang: &Gang, seat: &Seat, job: &Queued) -> bool {
        gang.priority == job.priority && seat.joined.is_some_and(|joined| joined < self.settle)
    }

    fn stays(&self, i: usize, seat: &Seat) -> bool {
        !seat.leaving && !self.taken.iter().any(|(gang, place, _)| *gang == i && *place == seat.place)
    }

    /// One decision for each gang and job that takes from it.
    pub(super) fn into_decisions(self) -> Vec<Decision> {
        let mut shrinks: Vec<(usize, JobId, Vec<u32>)> = Vec::new();
        for (gang, place, for_job) in self.taken {
            match shrinks.iter_mut().find(|(g, j, _)| *g == gang && *j == for_job) {
                Some((.., places)) => places.push(place),
                None => shrinks.push((gang, for_job, vec![place])),
            }
        }
        let decision = |(gang, for_job, places): (usize, JobId, Vec<u32>)| Decision::Shrink {
            job: self.gangs[gang].job,
            places,
            for_job,
        };
        shrinks.into_iter().map(decision).collect()
    }
}
