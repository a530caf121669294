//! What a waiting job takes from running ones: what they hold above their minimum, and all of those of a lower priority
//! where that is not enough.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashSet},
};

use super::{
    Decision, Gang, Reason, Seat, Standing, Times,
    free::{Free, Want},
    order,
};
use crate::ids::JobId;

/// Busy workers that come free, and those that could be made to. Workers are numbers in the fleet.
pub(super) struct Supply<'a> {
    gangs: &'a [Gang],
    seats: Vec<Vec<Held>>,
    times: Times,
    /// Workers about to come free that nobody in the queue counts on yet.
    coming: BTreeSet<u32>,
    /// Those whose places were asked for before, by jobs that go on.
    given: BTreeSet<u32>,
    /// Workers that are counted on by those who had their turn.
    promised: BTreeSet<u32>,
    /// Gangs with something above their minimum.
    above: Above,
    /// The same as their equals see it: what has just joined stays.
    above_for_equals: Above,
    /// What is asked for in this decision: gang, place, for whom.
    taken: Vec<(usize, u32, JobId)>,
    /// Gangs that are sent back to the queue.
    preempted: Vec<(usize, JobId)>,
}

/// Gangs with something above their minimum, by priority: most above it first, then the youngest.
type Above = BTreeMap<i32, BTreeSet<(Reverse<usize>, Reverse<usize>)>>;

/// Gangs that are looked at for the sake of one worker.
const MAX_GANGS: usize = 1000;

/// A place that stays with its gang so far.
#[derive(Clone, Copy)]
struct Held {
    seat: Seat,
    /// None: its worker takes no work.
    worker: Option<u32>,
}

/// The job that takes.
pub(super) struct Taker<'j> {
    pub(super) job: JobId,
    pub(super) min: usize,
    pub(super) priority: i32,
    pub(super) level: i64,
    pub(super) want: &'j Want,
}

impl<'a> Supply<'a> {
    /// What `gangs` hold.
    pub(super) fn new(gangs: &'a [Gang], free: &Free<'_>, times: Times) -> Self {
        let (mut coming, mut given) = (BTreeSet::new(), BTreeSet::new());
        let mut seats = Vec::with_capacity(gangs.len());
        for gang in gangs {
            let ends = gang.standing == Standing::Ending;
            let mut stay = Vec::new();
            for seat in &gang.seats {
                let worker = free.number(seat.worker);
                match (ends, seat.leaving) {
                    (false, false) => stay.push(Held { seat: *seat, worker }),
                    (true, _) => coming.extend(worker),
                    (false, true) => given.extend(worker),
                }
            }
            seats.push(stay);
        }
        coming.extend(given.iter().copied());
        let mut this = Self {
            gangs,
            seats,
            times,
            coming,
            given,
            promised: BTreeSet::new(),
            above: Above::new(),
            above_for_equals: Above::new(),
            taken: Vec::new(),
            preempted: Vec::new(),
        };
        for i in 0..gangs.len() {
            this.list(i);
        }
        this
    }

    /// Finds the workers that a job lacks beside the `reserved` ones: among those that come free, then by taking, then by
    /// sending jobs of a lower priority back. `None`, and nothing is taken, when there are not enough; otherwise why the
    /// job waits, none where it counts on jobs that end anyway.
    pub(super) fn cover(
        &mut self,
        taker: &Taker<'_>,
        reserved: BTreeSet<u32>,
        free: &Free<'_>,
    ) -> Option<Option<Reason>> {
        let mut workers = reserved;
        for worker in self.coming.iter().filter(|worker| free.matches(**worker, taker.want)) {
            if workers.len() < taker.min {
                workers.insert(*worker);
            }
        }
        let mut asked = self.take_above(taker, &mut workers, free);
        let victims = if workers.len() < taker.min {
            let Some(victims) = self.choose_victims(taker, &workers, free) else {
                self.give_back(&asked);
                return None;
            };
            self.drop_needless(taker, &mut workers, &mut asked, &victims, free);
            victims
        } else {
            Vec::new()
        };
        let given = self.given.intersection(&workers).filter(|worker| self.coming.contains(worker)).count();
        self.coming.retain(|worker| !workers.contains(worker));
        self.promised.extend(&workers);
        self.taken.extend(asked.iter().map(|(gang, held)| (*gang, held.seat.place, taker.job)));
        for gang in &victims {
            self.unlist(*gang);
            let left = std::mem::take(&mut self.seats[*gang]);
            // What the taker does not need is there for those after it.
            self.coming.extend(left.iter().filter_map(|held| held.worker).filter(|w| !workers.contains(w)));
            self.preempted.push((*gang, taker.job));
        }
        let reason = match (victims.len(), given + asked.len()) {
            (0, 0) => None,
            (0, workers) => Some(Reason::GivenBack { workers }),
            (jobs, _) => Some(Reason::Preempting { jobs }),
        };
        Some(reason)
    }

    /// Takes what gangs of the same priority or a lower one hold above their minimum, until the taker has enough.
    fn take_above(
        &mut self,
        taker: &Taker<'_>,
        workers: &mut BTreeSet<u32>,
        free: &Free<'_>,
    ) -> Vec<(usize, Held)> {
        let mut asked = Vec::new();
        while workers.len() < taker.min {
            let Some((gang, at)) = self.next_victim(taker, workers, free) else { break };
            self.unlist(gang);
            let held = self.seats[gang].remove(at);
            self.list(gang);
            workers.extend(held.worker);
            asked.push((gang, held));
        }
        asked
    }

    fn give_back(&mut self, asked: &[(usize, Held)]) {
        for (gang, held) in asked {
            self.unlist(*gang);
            let seats = &mut self.seats[*gang];
            let at = seats.partition_point(|other| other.seat.place < held.seat.place);
            seats.insert(at, *held);
            self.list(*gang);
        }
    }

    /// The place to take next: of the lowest priority, then of the gang with most above its minimum, then of the
    /// youngest gang; its newest place that helps.
    fn next_victim(
        &self,
        taker: &Taker<'_>,
        workers: &BTreeSet<u32>,
        free: &Free<'_>,
    ) -> Option<(usize, usize)> {
        let helps = |held: &Held| {
            held.worker.is_some_and(|worker| free.matches(worker, taker.want) && !workers.contains(&worker))
        };
        for priority in self.above.range(..=taker.priority).map(|(priority, _)| *priority) {
            let equal = priority == taker.priority;
            let above = if equal { &self.above_for_equals } else { &self.above };
            for (_, Reverse(gang)) in above.get(&priority).into_iter().flatten().take(MAX_GANGS) {
                let takes = |held: &Held| helps(held) && !(equal && self.has_just_joined(held));
                let seats = &self.seats[*gang];
                let newest =
                    (0..seats.len()).filter(|at| takes(&seats[*at])).max_by_key(|at| seats[*at].seat.place);
                if let Some(at) = newest {
                    return Some((*gang, at));
                }
            }
        }
        None
    }

    /// Running jobs of a lower priority that free enough for the taker, the lowest and then the youngest first: no more
    /// of them than are needed. A job that would come before the taker in the queue, having waited for long, is spared:
    /// it would get its workers again.
    fn choose_victims(
        &self,
        taker: &Taker<'_>,
        workers: &BTreeSet<u32>,
        free: &Free<'_>,
    ) -> Option<Vec<usize>> {
        let behind = |gang: &Gang| {
            gang.priority < taker.priority && order::level(gang.priority, gang.age, self.times) < taker.level
        };
        let mut victims: Vec<usize> = (0..self.gangs.len())
            .filter(|i| {
                let gang = &self.gangs[*i];
                gang.preemptible
                    && gang.standing == Standing::Training
                    && behind(gang)
                    && !self.seats[*i].is_empty()
            })
            .collect();
        victims.sort_by_key(|i| (self.gangs[*i].priority, Reverse(*i)));
        let mut helpers: BTreeMap<u32, usize> = BTreeMap::new();
        let mut chosen: Vec<(usize, Vec<u32>)> = Vec::new();
        for gang in victims {
            if workers.len() + helpers.len() >= taker.min {
                break;
            }
            let helps = |worker: &u32| free.matches(*worker, taker.want) && !workers.contains(worker);
            let freed: Vec<u32> =
                self.seats[gang].iter().filter_map(|held| held.worker).filter(helps).collect();
            if !freed.is_empty() {
                freed.iter().for_each(|worker| *helpers.entry(*worker).or_default() += 1);
                chosen.push((gang, freed));
            }
        }
        if workers.len() + helpers.len() < taker.min {
            return None;
        }
        // Those of the highest priority are spared first.
        for i in (0..chosen.len()).rev() {
            let alone = chosen[i].1.iter().filter(|worker| helpers[*worker] == 1).count();
            if workers.len() + helpers.len() - alone >= taker.min {
                for worker in chosen.remove(i).1 {
                    match helpers.get_mut(&worker) {
                        Some(1) | None => drop(helpers.remove(&worker)),
                        Some(n) => *n -= 1,
                    }
                }
            }
        }
        Some(chosen.into_iter().map(|(gang, _)| gang).collect())
    }

    /// Adds the victims' workers, and gives back what was asked for and is not needed beside them.
    fn drop_needless(
        &mut self,
        taker: &Taker<'_>,
        workers: &mut BTreeSet<u32>,
        asked: &mut Vec<(usize, Held)>,
        victims: &[usize],
        free: &Free<'_>,
    ) {
        let victim: HashSet<usize> = victims.iter().copied().collect();
        let matching = |held: &Held| held.worker.filter(|worker| free.matches(*worker, taker.want));
        let freed: BTreeSet<u32> =
            victims.iter().flat_map(|gang| self.seats[*gang].iter().filter_map(matching)).collect();
        let all = workers.union(&freed).count();
        let mut spare = all.saturating_sub(taker.min);
        let (mut kept, mut back) = (Vec::new(), Vec::new());
        for (gang, held) in asked.drain(..) {
            if victim.contains(&gang) {
                back.push((gang, held));
            } else if spare > 0 {
                spare -= 1;
                if let Some(worker) = held.worker {
                    workers.remove(&worker);
                }
                back.push((gang, held));
            } else {
                kept.push((gang, held));
            }
        }
        self.give_back(&back);
        *asked = kept;
        for worker in freed {
            if workers.len() < taker.min {
                workers.insert(worker);
            }
        }
    }

    fn list(&mut self, gang: usize) {
        let priority = self.gangs[gang].priority;
        let (above, for_equals) = self.above_min(gang);
        for (above, index) in [(above, &mut self.above), (for_equals, &mut self.above_for_equals)] {
            if above > 0 {
                index.entry(priority).or_default().insert((Reverse(above), Reverse(gang)));
            }
        }
    }

    fn unlist(&mut self, gang: usize) {
        let priority = self.gangs[gang].priority;
        let (above, for_equals) = self.above_min(gang);
        for (above, index) in [(above, &mut self.above), (for_equals, &mut self.above_for_equals)] {
            index.entry(priority).or_default().remove(&(Reverse(above), Reverse(gang)));
        }
    }

    /// Places above a gang's minimum: all, and those that it gives to an equal. What has just joined counts with what it
    /// keeps: otherwise an old member would be taken in place of a new one.
    fn above_min(&self, gang: usize) -> (usize, usize) {
        let kept = self.seats[gang].iter().filter(|held| self.has_just_joined(held)).count();
        let above = self.seats[gang].len().saturating_sub(self.gangs[gang].min);
        (above, above.saturating_sub(kept))
    }

    fn has_just_joined(&self, held: &Held) -> bool {
        held.seat.joined.is_some_and(|joined| joined < self.times.settle)
    }

    /// When each busy worker comes free, where that is known, the earliest first.
    pub(super) fn releases(&self, free: &Free<'_>) -> Vec<(std::time::Duration, u32)> {
        let mut releases = Vec::new();
        for gang in self.gangs {
            let ends = gang.standing == Standing::Ending;
            for seat in &gang.seats {
                let at = if ends || seat.leaving { Some(std::time::Duration::ZERO) } else { gang.left };
                releases.extend(at.zip(free.number(seat.worker)));
            }
        }
        releases.sort_unstable();
        releases
    }

    /// Whether a job that had its turn counts on a worker.
    pub(super) fn is_promised(&self, worker: u32) -> bool {
        self.promised.contains(&worker)
    }

    /// One decision for each gang and job that takes from it.
    pub(super) fn into_decisions(self) -> Vec<Decision> {
        let mut at: BTreeMap<(usize, JobId), usize> = BTreeMap::new();
        let mut shrinks: Vec<(usize, JobId, Vec<u32>)> = Vec::new();
        let all_of: HashSet<usize> = self.preempted.iter().map(|(gang, _)| *gang).collect();
        for (gang, place, for_job) in self.taken.into_iter().filter(|(gang, ..)| !all_of.contains(gang)) {
            let i = *at.entry((gang, for_job)).or_insert(shrinks.len());
            match shrinks.get_mut(i) {
                Some((.., places)) => places.push(place),
                None => shrinks.push((gang, for_job, vec![place])),
            }
        }
        let shrink = |(gang, for_job, places): (usize, JobId, Vec<u32>)| Decision::Shrink {
            job: self.gangs[gang].job,
            places,
            for_job,
        };
        let preempt =
            |(gang, for_job): (usize, JobId)| Decision::Preempt { job: self.gangs[gang].job, for_job };
        shrinks.into_iter().map(shrink).chain(self.preempted.into_iter().map(preempt)).collect()
    }
}
