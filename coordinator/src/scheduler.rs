//! Which jobs start now, on which slots, and why the others wait: a pure function of the queue and the fleet.
//!
//! First come, first served. A job starts with at least `workers.min` members at once or not at all. A job that the
//! whole fleet could not hold stands aside; one that only waits for busy workers keeps its turn, so that smaller ones
//! behind it cannot starve it. What is left once everyone who can start has its minimum goes to the starting jobs as
//! room up to `workers.max`, but only while nobody waits for it, and only to jobs that have waited a moment (`gather`):
//! a gang does not give workers back while it trains, so two jobs submitted one after the other would not share.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use crate::ids::{JobId, WorkerId};

/// A job that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// The job.
    pub job: JobId,
    /// Members that it needs to start; at least 1.
    pub min: usize,
    /// Members that it can use; at least `min`.
    pub max: usize,
    /// How long the scheduler has known it.
    pub waited: Duration,
    /// The kind of worker that it ran on before, if any.
    pub kind: Option<String>,
}

/// A live worker that takes work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// The worker.
    pub worker: WorkerId,
    /// Its kind: a gang of one kind keeps the promise of equal bits over restarts.
    pub kind: String,
    /// Its free slots.
    pub free: Vec<u32>,
}

/// A place in a gang.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The worker.
    pub worker: WorkerId,
    /// The slot on it.
    pub slot: u32,
}

/// What to do about a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Start it, members in order of their index.
    Start {
        /// The job.
        job: JobId,
        /// One place a member, each on another worker.
        places: Vec<Place>,
    },
    /// Leave it queued.
    Wait {
        /// The job.
        job: JobId,
        /// Why, in one sentence.
        reason: String,
    },
}

/// Decides over `queue` (oldest first) and `fleet`; one decision a job, in the queue's order.
pub fn schedule(queue: &[Queued], fleet: &[Worker], gather: Duration) -> Vec<Decision> {
    let mut free = Free::new(fleet);
    let mut planned: Vec<Plan<'_>> = Vec::with_capacity(queue.len());
    let mut blocked_by: Option<&Queued> = None;
    for job in queue {
        let plan = if fleet.len() < job.min {
            Plan::Wait(job, too_small(job.min, fleet.len()))
        } else if let Some(earlier) = blocked_by {
            Plan::Wait(job, format!("waits its turn: an earlier job waits for {}", workers(earlier.min)))
        } else if free.workers() < job.min {
            blocked_by = Some(job);
            Plan::Wait(job, format!("waits for {} to be free", workers(job.min)))
        } else {
            Plan::Start(job, free.take(job.min, job.kind.as_deref(), &[]))
        };
        planned.push(plan);
    }
    if blocked_by.is_none() {
        give_room(&mut planned, &mut free, gather);
    }
    planned.into_iter().map(Plan::decision).collect()
}

/// A job's fate while the decision is made.
enum Plan<'a> {
    Start(&'a Queued, Vec<Place>),
    Wait(&'a Queued, String),
}

impl Plan<'_> {
    fn decision(self) -> Decision {
        match self {
            Self::Start(job, places) => Decision::Start { job: job.job, places },
            Self::Wait(job, reason) => Decision::Wait { job: job.job, reason },
        }
    }
}

/// Deals what is left to the starting jobs, one member in turn, so that equals get equal shares; a job that came only
/// a moment ago and could use what is left is held back until others had time to come.
fn give_room(planned: &mut [Plan<'_>], free: &mut Free, gather: Duration) {
    let mut grew = true;
    while grew {
        grew = false;
        for plan in planned.iter_mut() {
            let Plan::Start(job, places) = plan else { continue };
            if places.len() >= job.max || !free.has_other_than(places) {
                continue;
            }
            if job.waited < gather {
                free.put_back(places);
                *plan = Plan::Wait(job, "starts in a moment".to_owned());
                // What it left may be wanted by jobs after it in the next round; not now, for it is next in line.
                return;
            }
            places.extend(free.take(1, job.kind.as_deref(), places));
            grew = true;
        }
    }
}

/// The free slots, by worker.
struct Free {
    /// Slots of each worker that has free ones, in the order of the fleet's description.
    slots: BTreeMap<usize, (WorkerId, String, Vec<u32>)>,
    index: BTreeMap<WorkerId, (usize, String)>,
}

impl Free {
    fn new(fleet: &[Worker]) -> Self {
        let with_slots = fleet.iter().enumerate().filter(|(_, worker)| !worker.free.is_empty());
        let slots = with_slots.map(|(i, w)| (i, (w.worker, w.kind.clone(), w.free.clone()))).collect();
        let index = fleet.iter().enumerate().map(|(i, w)| (w.worker, (i, w.kind.clone()))).collect();
        Self { slots, index }
    }

    /// Workers with a free slot.
    fn workers(&self) -> usize {
        self.slots.len()
    }

    fn has_other_than(&self, places: &[Place]) -> bool {
        let taken: HashSet<WorkerId> = places.iter().map(|place| place.worker).collect();
        self.slots.values().any(|(worker, ..)| !taken.contains(worker))
    }

    /// Takes `n` places on workers that `gang` does not use yet: of the wanted kind first, then of the gang's own, then
    /// of the kind with most free workers.
    fn take(&mut self, n: usize, kind: Option<&str>, gang: &[Place]) -> Vec<Place> {
        let mut of_kind: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, kind, _) in self.slots.values() {
            *of_kind.entry(kind).or_default() += 1;
        }
        let gang_kind = gang.first().and_then(|p| self.index.get(&p.worker)).map(|(_, kind)| kind.as_str());
        let used: HashSet<WorkerId> = gang.iter().map(|place| place.worker).collect();
        let mut order: Vec<usize> =
            self.slots.iter().filter(|(_, (worker, ..))| !used.contains(worker)).map(|(i, _)| *i).collect();
        order.sort_by_key(|i| {
            let own = self.slots[i].1.as_str();
            let preferred = Some(own) == kind || (kind.is_none() && Some(own) == gang_kind);
            (!preferred, usize::MAX - of_kind.get(own).copied().unwrap_or(0), own, *i)
        });
        order.truncate(n);
        order.into_iter().map(|i| self.take_slot(i)).collect()
    }

    fn take_slot(&mut self, i: usize) -> Place {
        let (worker, _, slots) = self.slots.get_mut(&i).expect("only workers with free slots are offered");
        let place = Place { worker: *worker, slot: slots.remove(0) };
        if slots.is_empty() {
            self.slots.remove(&i);
        }
        place
    }

    fn put_back(&mut self, places: &[Place]) {
        for place in places {
            let Some((i, kind)) = self.index.get(&place.worker) else { continue };
            let entry = self.slots.entry(*i).or_insert_with(|| (place.worker, kind.clone(), Vec::new()));
            entry.2.push(place.slot);
            entry.2.sort_unstable();
        }
    }
}

fn workers(n: usize) -> String {
    if n == 1 { "a worker".to_owned() } else { format!("{n} workers") }
}

fn too_small(min: usize, fleet: usize) -> String {
    let has = match fleet {
        0 => "no workers".to_owned(),
        n => n.to_string(),
    };
    format!("needs {}, the fleet has {has}", workers(min))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const GATHER: Duration = Duration::from_millis(300);

    fn job(n: u128, min: usize, max: usize) -> Queued {
        Queued { job: JobId(Uuid::from_u128(n)), min, max, waited: GATHER, kind: None }
    }

    fn worker(n: u128, free: &[u32]) -> Worker {
        Worker { worker: WorkerId(Uuid::from_u128(n)), kind: "k".into(), free: free.to_vec() }
    }

    fn sizes(decisions: &[Decision]) -> Vec<usize> {
        let size = |d: &Decision| match d {
            Decision::Start { places, .. } => places.len(),
            Decision::Wait { .. } => 0,
        };
        decisions.iter().map(size).collect()
    }

    fn reason(decision: &Decision) -> &str {
        match decision {
            Decision::Wait { reason, .. } => reason,
            Decision::Start { .. } => panic!("it starts: {decision:?}"),
        }
    }

    #[test]
    fn two_jobs_share_two_workers_and_one_alone_gets_both() {
        let fleet = [worker(1, &[0]), worker(2, &[0])];
        assert_eq!(sizes(&schedule(&[job(1, 1, 4), job(2, 1, 4)], &fleet, GATHER)), [1, 1]);
        assert_eq!(sizes(&schedule(&[job(1, 1, 4)], &fleet, GATHER)), [2]);
    }

    #[test]
    fn a_job_that_could_use_more_waits_a_moment_for_company() {
        let fleet = [worker(1, &[0]), worker(2, &[0])];
        let fresh = Queued { waited: Duration::ZERO, ..job(1, 1, 4) };
        let alone = schedule(std::slice::from_ref(&fresh), &fleet, GATHER);
        assert_eq!(reason(&alone[0]), "starts in a moment");
        // With company it starts at once: nothing is left to wait for.
        assert_eq!(sizes(&schedule(&[fresh.clone(), job(2, 1, 4)], &fleet, GATHER)), [1, 1]);
        // So does one that can't use more than there is.
        assert_eq!(sizes(&schedule(&[Queued { max: 1, ..fresh }], &fleet, GATHER)), [1]);
    }

    #[test]
    fn reasons_name_what_is_missing() {
        let fleet = [worker(1, &[0]), worker(2, &[])];
        let decisions = schedule(&[job(1, 3, 3), job(2, 2, 2), job(3, 1, 1)], &fleet, GATHER);
        assert_eq!(reason(&decisions[0]), "needs 3 workers, the fleet has 2");
        assert_eq!(reason(&decisions[1]), "waits for 2 workers to be free");
        assert_eq!(reason(&decisions[2]), "waits its turn: an earlier job waits for 2 workers");
        assert_eq!(
            reason(&schedule(&[job(1, 1, 1)], &[], GATHER)[0]),
            "needs a worker, the fleet has no workers"
        );
    }

    #[test]
    fn a_gang_keeps_to_one_kind_where_it_can_and_to_the_kind_it_had() {
        let of = |n, kind: &str| Worker { kind: kind.into(), ..worker(n, &[0]) };
        let fleet = [of(1, "a"), of(2, "b"), of(3, "b")];
        let kind_of = |d: &Decision| match d {
            Decision::Start { places, .. } => places.iter().map(|p| p.worker.0.as_u128()).collect::<Vec<_>>(),
            Decision::Wait { .. } => vec![],
        };
        assert_eq!(kind_of(&schedule(&[job(1, 2, 2)], &fleet, GATHER)[0]), [2, 3]);
        let had_a = Queued { kind: Some("a".into()), ..job(1, 1, 1) };
        assert_eq!(kind_of(&schedule(&[had_a], &fleet, GATHER)[0]), [1]);
    }

    fn queues() -> impl Strategy<Value = Vec<Queued>> {
        let one = (1usize..5, 0usize..4, 0u64..600);
        prop::collection::vec(one, 0..12).prop_map(|jobs| {
            let build = |(i, (min, more, waited)): (usize, (usize, usize, u64))| Queued {
                waited: Duration::from_millis(waited),
                ..job(i as u128, min, min + more)
            };
            jobs.into_iter().enumerate().map(build).collect()
        })
    }

    fn fleets() -> impl Strategy<Value = Vec<Worker>> {
        prop::collection::vec((0u32..3, 0u8..2), 0..8).prop_map(|workers| {
            let build = |(i, (slots, kind)): (usize, (u32, u8))| Worker {
                kind: format!("kind {kind}"),
                ..worker(100 + i as u128, &(0..slots).collect::<Vec<_>>())
            };
            workers.into_iter().enumerate().map(build).collect()
        })
    }

    proptest! {
        #[test]
        fn decisions_are_sound(queue in queues(), fleet in fleets()) {
            let decisions = schedule(&queue, &fleet, GATHER);
            prop_assert_eq!(&decisions, &schedule(&queue, &fleet, GATHER), "same inputs, same decisions");
            prop_assert_eq!(decisions.len(), queue.len());
            let offered: HashSet<Place> = fleet.iter()
                .flat_map(|w| w.free.iter().map(|slot| Place { worker: w.worker, slot: *slot })).collect();
            let mut used = HashSet::new();
            let mut waits_for_free = None;
            for (job, decision) in queue.iter().zip(&decisions) {
                match decision {
                    Decision::Start { job: id, places } => {
                        prop_assert_eq!(*id, job.job);
                        prop_assert!(places.len() >= job.min && places.len() <= job.max, "never a partial gang");
                        prop_assert!(waits_for_free.is_none(), "nobody overtakes one that waits for free workers");
                        let workers: HashSet<_> = places.iter().map(|p| p.worker).collect();
                        prop_assert_eq!(workers.len(), places.len(), "each member on another worker");
                        for place in places {
                            prop_assert!(offered.contains(place), "only what is free");
                            prop_assert!(used.insert(*place), "nothing twice");
                        }
                    }
                    Decision::Wait { reason, .. } => {
                        prop_assert!(!reason.is_empty());
                        if job.min <= fleet.len() && !reason.contains("moment") {
                            waits_for_free = Some(job.job);
                        }
                    }
                }
            }
        }

        /// The first job that the fleet could hold starts as soon as enough workers are free and it has waited.
        #[test]
        fn the_head_of_the_queue_is_never_starved(queue in queues(), fleet in fleets()) {
            let queue: Vec<_> = queue.into_iter().map(|q| Queued { waited: GATHER, ..q }).collect();
            let decisions = schedule(&queue, &fleet, GATHER);
            let free = fleet.iter().filter(|w| !w.free.is_empty()).count();
            if let Some(i) = queue.iter().position(|q| q.min <= fleet.len()) {
                prop_assert_eq!(sizes(&decisions)[i] > 0, queue[i].min <= free);
            }
        }
    }
}
