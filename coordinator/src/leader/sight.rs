//! What the scheduler is shown: rows, with the times for which this leader has seen them. A new leader begins with
//! nothing, so that everything counts as new before its eyes.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    bars::{Bars, Ended},
    ids::{JobId, TenantId, WorkerId},
    queue::{GangEntry, QueueEntry, SeatEntry},
    scheduler::{Gang, Labels, Queued, Seat, Worker},
};

/// Since when this leader has known what it sees.
#[derive(Debug, Default)]
pub struct Sight {
    queued: HashMap<JobId, Instant>,
    idle: HashMap<WorkerId, Instant>,
    /// By job and attempt: each place, with when it was given to a gang that was running already.
    joined: HashMap<(JobId, u32), HashMap<u32, Option<Instant>>>,
    bars: Bars,
}

impl Sight {
    /// The jobs that wait.
    pub fn queue(&mut self, now: Instant, entries: &[QueueEntry]) -> Vec<Queued> {
        let known: HashSet<JobId> = entries.iter().map(|entry| entry.job).collect();
        self.queued.retain(|job, _| known.contains(job));
        let mut queued = |entry: &QueueEntry| Queued {
            job: entry.job,
            tenant: TenantId::DEFAULT,
            priority: entry.priority,
            min: entry.min as usize,
            max: entry.max as usize,
            waited: now.duration_since(*self.queued.entry(entry.job).or_insert(now)),
            age: Duration::ZERO,
            kind: entry.kinds.split(", ").next().filter(|kind| !kind.is_empty()).map(Arc::from),
            selector: Labels::none(),
            base: None,
            run_estimate: None,
        };
        entries.iter().map(&mut queued).collect()
    }

    /// The workers that take work.
    pub fn fleet(&mut self, now: Instant, workers: Vec<Worker>) -> Vec<Worker> {
        let idle: HashSet<WorkerId> =
            workers.iter().filter(|worker| !worker.free.is_empty()).map(|worker| worker.worker).collect();
        self.idle.retain(|worker, _| idle.contains(worker));
        let mut timed = |worker: Worker| {
            let idle = if worker.free.is_empty() {
                Duration::ZERO
            } else {
                now.duration_since(*self.idle.entry(worker.worker).or_insert(now))
            };
            Worker { idle, ..worker }
        };
        workers.into_iter().map(&mut timed).collect()
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
            gangs.push(Gang {
                job: entry.job,
                tenant: TenantId::DEFAULT,
                priority: entry.priority,
                min: entry.min as usize,
                max: entry.max as usize,
                standing: entry.standing,
                kinds: entry.kinds.iter().map(|kind| Arc::from(kind.as_str())).collect(),
                selector: Labels::none(),
                base: None,
                age: Duration::ZERO,
                left: None,
                preemptible: false,
                seats: entry.seats.iter().map(seat).collect(),
                barred: barred.remove(&entry.job).unwrap_or_default(),
            });
            self.joined.insert((entry.job, entry.attempt), joined);
        }
        gangs
    }
}

/// When a place was given to a running gang: what is there when the gang is first seen, was there from its start.
fn joined(known: Option<&HashMap<u32, Option<Instant>>>, seat: &SeatEntry, now: Instant) -> Option<Instant> {
    let known = known?;
    known.get(&seat.place).copied().unwrap_or(Some(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Standing;

    fn seat(place: u32) -> SeatEntry {
        SeatEntry { place, worker: WorkerId::random(), leaving: false }
    }

    fn gang(job: JobId, seats: &[SeatEntry]) -> GangEntry {
        GangEntry {
            job,
            attempt: 1,
            priority: 0,
            min: 1,
            max: 4,
            kinds: vec!["k".into()],
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
        let mut idle = |s, free: &[u32]| {
            let worker = Worker {
                worker,
                kind: "k".into(),
                device: "cpu".into(),
                labels: Labels::none(),
                bases: Vec::new(),
                free: free.to_vec(),
                idle: Duration::ZERO,
            };
            sight.fleet(at(s), vec![worker])[0].idle.as_secs()
        };
        assert_eq!(
            [idle(0, &[0]), idle(3, &[0]), idle(4, &[]), idle(5, &[0]), idle(7, &[0])],
            [0, 3, 0, 0, 2]
        );
    }

    #[test]
    fn a_job_that_left_the_queue_and_comes_back_waits_anew() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let entry = QueueEntry {
            job: JobId::new(),
            priority: 3,
            min: 1,
            max: 2,
            kinds: "a, b".into(),
            message: String::new(),
        };
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
