//! What the scheduler is shown: rows, with the times for which this leader has seen them. A new leader begins with
//! nothing, so that everything counts as new before its eyes.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::names::Names;
use crate::{
    bars::{Bars, Ended},
    fleet::FreeWorker,
    ids::{JobId, WorkerId},
    queue::{GangEntry, QueueEntry, SeatEntry},
    scheduler::{DEVICE, Gang, Labels, Queued, Seat, Standing, Worker},
};

/// Bases that a worker is taken to hold still: those of the jobs that it worked for last.
const BASES: usize = 4;
/// Selectors that no worker matches, remembered at most.
const UNMATCHED: usize = 100;

/// Since when this leader has known what it sees.
#[derive(Debug, Default)]
pub struct Sight {
    queued: HashMap<JobId, Instant>,
    idle: HashMap<WorkerId, Instant>,
    /// By job and attempt: each place, with when it was given to a gang that was running already.
    joined: HashMap<(JobId, u32), HashMap<u32, Option<Instant>>>,
    bars: Bars,
    names: Names,
    /// As the names have them, and as rows do.
    unmatched: HashMap<Arc<Labels>, Value>,
    /// By worker: the newest last.
    bases: HashMap<WorkerId, Vec<Arc<str>>>,
    /// By running job: how long it said that it still trains, and when.
    left: HashMap<JobId, (Duration, Instant)>,
}

impl Sight {
    /// How long running jobs say that they still train.
    pub fn set_time_left(&mut self, now: Instant, left: Vec<(JobId, Duration)>) {
        self.left = left.into_iter().map(|(job, left)| (job, (left, now))).collect();
    }

    /// The jobs that wait.
    pub fn queue(&mut self, now: Instant, entries: &[QueueEntry]) -> Vec<Queued> {
        let known: HashSet<JobId> = entries.iter().map(|entry| entry.job).collect();
        self.queued.retain(|job, _| known.contains(job));
        let mut queued = |entry: &QueueEntry| Queued {
            job: entry.job,
            tenant: entry.tenant,
            priority: entry.priority,
            min: entry.min as usize,
            max: entry.max as usize,
            waited: now.duration_since(*self.queued.entry(entry.job).or_insert(now)),
            age: entry.age,
            kind: entry.kinds.split(", ").next().and_then(|kind| self.names.text(kind)),
            selector: self.names.labels(&entry.selector),
            base: self.names.text(&entry.base),
            run_estimate: entry.run_estimate,
        };
        entries.iter().map(&mut queued).collect()
    }

    /// The workers that take work.
    pub fn fleet(&mut self, now: Instant, workers: &[FreeWorker]) -> Vec<Worker> {
        let idle: HashSet<WorkerId> =
            workers.iter().filter(|worker| !worker.free.is_empty()).map(|worker| worker.worker).collect();
        self.idle.retain(|worker, _| idle.contains(worker));
        let known: HashSet<WorkerId> = workers.iter().map(|worker| worker.worker).collect();
        self.bases.retain(|worker, _| known.contains(worker));
        let mut seen = |worker: &FreeWorker| Worker {
            worker: worker.worker,
            kind: self.names.text(&worker.kind).unwrap_or_default(),
            device: worker.labels.get(DEVICE).and_then(|device| self.names.text(device)).unwrap_or_default(),
            labels: self.names.labels(&worker.labels),
            bases: self.bases.get(&worker.worker).cloned().unwrap_or_default(),
            free: worker.free.clone(),
            idle: if worker.free.is_empty() {
                Duration::ZERO
            } else {
                now.duration_since(*self.idle.entry(worker.worker).or_insert(now))
            },
        };
        workers.iter().map(&mut seen).collect()
    }

    /// Selectors of the queue that no worker of the fleet matched, of those in the last looks.
    pub fn unmatched(&self) -> Vec<Value> {
        self.unmatched.values().cloned().collect()
    }

    /// Looks which selectors of the queue, and of those before, no worker of the fleet matches.
    pub fn match_selectors(&mut self, queue: &[QueueEntry], fleet: &[Worker]) {
        if self.unmatched.len() > UNMATCHED {
            self.unmatched.clear();
        }
        let mut last = None;
        for selector in queue.iter().map(|entry| &entry.selector).filter(|selector| !selector.is_empty()) {
            if last.replace(selector) != Some(selector) {
                self.unmatched.insert(self.names.labels(selector), serde_json::json!(selector));
            }
        }
        self.unmatched.retain(|selector, _| !fleet.iter().any(|worker| worker.labels.match_all(selector)));
    }

    /// The jobs that hold places.
    pub fn gangs(&mut self, now: Instant, entries: &[GangEntry], ended: &[Ended]) -> Vec<Gang> {
        let mut barred = self.bars.at(now, ended);
        let mut before = std::mem::take(&mut self.joined);
        let mut gangs = Vec::with_capacity(entries.len());
        for entry in entries {
            let known = before.remove(&(entry.job, entry.attempt));
            let joined: HashMap<u32, Option<Instant>> =
                entry.seats.iter().map(|seat| (seat.place, joined(known.as_ref(), seat, now))).collect();
            let seat = |seat: &SeatEntry| Seat {
                place: seat.place,
                worker: seat.worker,
                leaving: seat.leaving,
                joined: joined[&seat.place].map(|since| now.duration_since(since)),
            };
            let base = self.names.text(&entry.base);
            for seat in &entry.seats {
                self.holds(seat.worker, base.as_ref());
            }
            let said =
                self.left.get(&entry.job).map(|(left, then)| left.saturating_sub(now.duration_since(*then)));
            gangs.push(Gang {
                job: entry.job,
                tenant: entry.tenant,
                priority: entry.priority,
                min: entry.min as usize,
                max: entry.max as usize,
                standing: entry.standing,
                kinds: entry.kinds.iter().filter_map(|kind| self.names.text(kind)).collect(),
                selector: self.names.labels(&entry.selector),
                base,
                age: entry.age,
                left: said.into_iter().chain(entry.run_limit).min(),
                preemptible: entry.standing == Standing::Training,
                seats: entry.seats.iter().map(seat).collect(),
                barred: barred.remove(&entry.job).unwrap_or_default(),
            });
            self.joined.insert((entry.job, entry.attempt), joined);
        }
        gangs
    }

    /// A worker that works for a job has its base at hand, also for the next one.
    fn holds(&mut self, worker: WorkerId, base: Option<&Arc<str>>) {
        let Some(base) = base else { return };
        let bases = self.bases.entry(worker).or_default();
        if bases.last() != Some(base) {
            bases.retain(|known| known != base);
            bases.push(base.clone());
            let older = bases.len().saturating_sub(BASES);
            bases.drain(..older);
        }
    }
}

/// When a place was given to a running gang: what is there when the gang is first seen, was there from its start.
fn joined(known: Option<&HashMap<u32, Option<Instant>>>, seat: &SeatEntry, now: Instant) -> Option<Instant> {
    let known = known?;
    known.get(&seat.place).copied().unwrap_or(Some(now))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ids::TenantId;

    fn seat(place: u32) -> SeatEntry {
        SeatEntry { place, worker: WorkerId::random(), leaving: false }
    }

    fn free_worker(worker: WorkerId, free: &[u32]) -> FreeWorker {
        FreeWorker { worker, kind: "k".into(), labels: BTreeMap::new(), free: free.to_vec() }
    }

    fn queued_in(zone: &str) -> QueueEntry {
        QueueEntry {
            job: JobId::new(),
            tenant: TenantId::DEFAULT,
            priority: 3,
            min: 1,
            max: 2,
            kinds: "a, b".into(),
            selector: BTreeMap::from([("zone".into(), zone.into())]),
            base: String::new(),
            age: Duration::ZERO,
            run_estimate: None,
            message: String::new(),
        }
    }

    fn gang(job: JobId, seats: &[SeatEntry]) -> GangEntry {
        GangEntry {
            job,
            attempt: 1,
            tenant: TenantId::DEFAULT,
            priority: 0,
            min: 1,
            max: 4,
            kinds: vec!["k".into()],
            selector: BTreeMap::new(),
            base: "base".into(),
            age: Duration::ZERO,
            run_limit: Some(Duration::from_secs(100)),
            standing: Standing::Training,
            seats: seats.to_vec(),
        }
    }

    #[test]
    fn places_that_a_running_gang_gets_are_told_from_its_first_ones() {
        let (job, start) = (JobId::new(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        let (first, second) = (seat(1), seat(2));
        let mut sight = Sight::default();
        let mut joined = |s, seats: &[SeatEntry]| -> Vec<Option<u64>> {
            let gangs = sight.gangs(at(s), &[gang(job, seats)], &[]);
            gangs[0].seats.iter().map(|seat| seat.joined.map(|time| time.as_secs())).collect()
        };
        assert_eq!(joined(0, &[first]), [None]);
        assert_eq!(joined(5, &[first, second]), [None, Some(0)]);
        assert_eq!(joined(9, &[first, second]), [None, Some(4)]);
        assert_eq!(joined(10, &[second]), [Some(5)]);
        // A new leader does not know, and protects nothing.
        let gangs = Sight::default().gangs(at(11), &[gang(job, &[second])], &[]);
        assert_eq!(gangs[0].seats[0].joined, None);
    }

    #[test]
    fn a_worker_is_idle_since_it_was_first_seen_with_a_free_slot() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let worker = WorkerId::random();
        let mut sight = Sight::default();
        let mut idle = |s, free: &[u32]| sight.fleet(at(s), &[free_worker(worker, free)])[0].idle.as_secs();
        assert_eq!(
            [idle(0, &[0]), idle(3, &[0]), idle(4, &[]), idle(5, &[0]), idle(7, &[0])],
            [0, 3, 0, 0, 2]
        );
    }

    #[test]
    fn workers_hold_the_bases_of_the_jobs_that_they_worked_for() {
        let (mut sight, now) = (Sight::default(), Instant::now());
        let seat = seat(1);
        let worker = free_worker(seat.worker, &[0]);
        for number in [1, 2, 3, 2, 4, 5] {
            let base = format!("base {number}");
            sight.gangs(now, &[GangEntry { base, ..gang(JobId::new(), &[seat]) }], &[]);
        }
        let bases = |sight: &mut Sight| -> Vec<String> {
            sight.fleet(now, std::slice::from_ref(&worker))[0].bases.iter().map(ToString::to_string).collect()
        };
        assert_eq!(bases(&mut sight), ["base 3", "base 2", "base 4", "base 5"]);
        sight.fleet(now, &[]);
        assert!(bases(&mut sight).is_empty(), "it was gone in between");
    }

    #[test]
    fn a_job_runs_as_long_as_it_says_but_not_beyond_its_limit() {
        let (mut sight, job, start) = (Sight::default(), JobId::new(), Instant::now());
        let mut left = |said: u64, after: u64| {
            sight.set_time_left(start, vec![(job, Duration::from_secs(said))]);
            let now = start + Duration::from_secs(after);
            sight.gangs(now, &[gang(job, &[seat(1)])], &[])[0].left.map(|left| left.as_secs())
        };
        assert_eq!([left(60, 5), left(500, 5), left(60, 70)], [Some(55), Some(100), Some(0)]);
    }

    #[test]
    fn selectors_that_no_worker_matches_are_remembered_until_one_does() {
        let (now, mut sight) = (Instant::now(), Sight::default());
        let worker = |zone: &str| FreeWorker {
            labels: BTreeMap::from([("zone".into(), zone.into())]),
            ..free_worker(WorkerId::random(), &[0])
        };
        let mut unmatched = |queue: &[QueueEntry], workers: &[FreeWorker]| {
            let fleet = sight.fleet(now, workers);
            sight.match_selectors(queue, &fleet);
            sight.unmatched()
        };
        let only_a = vec![serde_json::json!({"zone": "a"})];
        assert_eq!(unmatched(&[queued_in("a"), queued_in("b")], &[worker("b")]), only_a);
        assert_eq!(unmatched(&[], &[worker("b")]), only_a, "its jobs were passed over");
        assert!(unmatched(&[], &[worker("b"), worker("a")]).is_empty());
    }

    #[test]
    fn a_job_that_left_the_queue_and_comes_back_waits_anew() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let entry = queued_in("a");
        let mut sight = Sight::default();
        let mut waited =
            |s, entries: &[QueueEntry]| sight.queue(at(s), entries).first().map(|job| job.waited.as_secs());
        let one = std::slice::from_ref(&entry);
        assert_eq!(
            [waited(0, one), waited(2, one), waited(3, &[]), waited(4, one)],
            [Some(0), Some(2), None, Some(0)]
        );
        let queued = &Sight::default().queue(start, one)[0];
        assert_eq!((queued.priority, queued.kind.as_deref()), (3, Some("a")));
    }
}
