//! What a coordinator does regularly: leases end, places are told, jobs start, grow and shrink.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use lorafleet_coordinator::{
    bars,
    ids::{Fence, PlaceNo, RunId, TenantId},
    job::{Cause, JobState, MemberOutcome, Phase},
    scheduler::{self, Labels, Times},
    silence::{self, Patience, Silence},
};

use super::{process_of, worker_id};
use crate::{
    database::{Job, Place},
    messages::Down,
    world::{Millis, World},
};

/// How long silence is borne.
const PATIENCE: Patience = Patience { lease: Duration::from_secs(15), gang: Duration::from_secs(60) };
const TIMES: Times = Times {
    gather: Duration::from_millis(300),
    settle: Duration::from_secs(10),
    ageing: Duration::from_secs(3600),
    charge: Duration::from_secs(600),
};

impl World {
    /// What a coordinator does every [`POLL`].
    pub fn coordinator_looks(&mut self) {
        if !self.coordinator.up || !self.db_up {
            self.coordinator.lost_sight();
            return;
        }
        self.end_silent_leases();
        let now = self.now;
        self.coordinator.streams.retain(|_, shown| now - shown.heard < 3_000);
        for job in 0..self.db.jobs.len() {
            let orphans: Vec<_> =
                self.db.jobs[job].places.iter().filter(|p| p.outcome.is_none()).cloned().collect();
            for orphan in orphans {
                let live = self.db.leases.get(&orphan.process).is_some_and(|lease| lease.live);
                if !live && self.db.jobs[job].is_running() {
                    let run = self.db.jobs[job].run(orphan.place);
                    self.end_place(orphan.process, run, MemberOutcome::Lost);
                }
            }
            let regroup = self.advance(job);
            self.dispatch(job, regroup);
        }
        self.stop_strangers();
        self.schedule();
    }

    fn end_silent_leases(&mut self) {
        let live = self.db.leases.iter().filter(|(_, lease)| lease.live);
        let counters: Vec<(usize, i64)> = live.map(|(process, lease)| (*process, lease.counter)).collect();
        let instant = self.epoch + Duration::from_millis(self.now);
        let still = self.coordinator.leases.observe(instant, &counters);
        let silence = |process: &usize| Silence {
            still: still.get(process).copied().unwrap_or_default(),
            closed: self.coordinator.closed.contains(process),
        };
        let workers: HashMap<usize, Silence> = counters.iter().map(|(p, _)| (*p, silence(p))).collect();
        let holders = |job: &Job| -> Vec<usize> {
            job.places.iter().filter(|p| p.outcome.is_none()).map(|p| p.process).collect()
        };
        let gangs: Vec<Vec<usize>> =
            self.db.jobs.iter().filter(|job| job.is_running()).map(holders).collect();
        let mut ended = silence::ended(&workers, &gangs, PATIENCE);
        ended.sort_unstable();
        for process in ended {
            self.note(|| format!("lease of process {process} ends"));
            self.commit(|db| {
                if let Some(lease) = db.leases.get_mut(&process) {
                    lease.live = false;
                }
            });
        }
    }

    fn dispatch(&mut self, number: usize, regroup: bool) {
        let job = self.db.jobs[number].clone();
        if !job.is_running() {
            return;
        }
        for place in job.places.iter().filter(|p| p.outcome.is_none()) {
            let run = job.run(place.place);
            let Some(shown) = self.coordinator.streams.get(&place.process) else { continue };
            let listed =
                shown.running.as_ref().filter(|(own, ..)| *own == run).map(|(_, fence, _)| fence.clone());
            if job.phase == Phase::Closing {
                self.tell(place.process, Down::Stop(run));
                continue;
            }
            if listed.is_none() && !place.ready {
                self.tell(place.process, Down::Assign(run));
            }
            let member = job.phase == Phase::Training && job.index(place.place).is_some();
            if member && listed.as_ref() != Some(&job.fence) {
                self.tell_begin(number, place.place);
            }
            if member && regroup && place.parted.is_none() {
                self.tell(place.process, Down::Regroup { run, fence: job.fence.clone() });
            }
            if place.leaving {
                self.tell(place.process, Down::Leave(run));
            }
        }
    }

    /// Workers that run what they hold no live place for are told to stop.
    fn stop_strangers(&mut self) {
        let shown: Vec<(usize, RunId)> = self
            .coordinator
            .streams
            .iter()
            .filter_map(|(process, shown)| Some((*process, shown.running.as_ref()?.0)))
            .collect();
        for (process, run) in shown {
            let job = self.job_of(run);
            if self.db.jobs[job].held(process, run).is_none() {
                self.tell(process, Down::Stop(run));
            }
        }
    }

    fn schedule(&mut self) {
        let now = self.now;
        let since = |map: &BTreeMap<usize, Millis>, key: usize| {
            Duration::from_millis(now - map.get(&key).copied().unwrap_or(now))
        };
        let ended = self.troubled();
        let mut barred = self.coordinator.bars.at(self.epoch + Duration::from_millis(now), &ended);
        let mut queued = Vec::new();
        let mut gangs = Vec::new();
        for (number, job) in self.db.jobs.iter().enumerate() {
            if job.state == JobState::Queued {
                self.coordinator.queued_since.entry(number).or_insert(now);
                let waited = since(&self.coordinator.queued_since, number);
                let kind = None;
                queued.push(scheduler::Queued {
                    job: job.id,
                    tenant: TenantId::DEFAULT,
                    priority: job.priority,
                    min: job.min,
                    max: job.max,
                    waited,
                    // All were submitted at the beginning.
                    age: Duration::from_millis(now),
                    kind,
                    selector: Labels::none(),
                    base: None,
                    run_estimate: None,
                });
            } else {
                self.coordinator.queued_since.remove(&number);
            }
            if job.is_running() {
                gangs.push(self.coordinator.gang(job, barred.remove(&job.id).unwrap_or_default(), now));
            }
        }
        let mut fleet = Vec::new();
        let takes_work = self.db.leases.iter().filter(|(_, lease)| lease.live && !lease.draining);
        for (process, _) in takes_work {
            let holds = |job: &Job| {
                job.is_running() && job.places.iter().any(|p| p.process == *process && p.outcome.is_none())
            };
            let runs = self.coordinator.streams.get(process).is_none_or(|shown| shown.running.is_some());
            let free = !runs && !self.db.jobs.iter().any(holds);
            if free {
                self.coordinator.idle_since.entry(*process).or_insert(now);
            } else {
                self.coordinator.idle_since.remove(process);
            }
            fleet.push(scheduler::Worker {
                worker: worker_id(*process),
                kind: "k".into(),
                device: "cpu".into(),
                labels: Labels::none(),
                bases: Vec::new(),
                free: if free { vec![0] } else { Vec::new() },
                idle: since(&self.coordinator.idle_since, *process),
            });
        }
        for decision in scheduler::schedule(&queued.into(), &gangs, &fleet, &[], TIMES) {
            self.carry_out(decision);
        }
    }

    /// Places of live attempts that ended because the gang went on without their holders.
    fn troubled(&self) -> Vec<bars::Ended> {
        let mut ended = Vec::new();
        for job in self.db.jobs.iter().filter(|job| job.is_running()) {
            let expelled = |place: &&Place| place.outcome == Some(MemberOutcome::Expelled);
            for place in job.places.iter().filter(expelled) {
                let now = self.workers[self.processes[place.process]].process;
                ended.push(bars::Ended {
                    job: job.id,
                    attempt: job.fence.attempt,
                    place: place.place.0,
                    worker: worker_id(now),
                    how: bars::How::Troubled,
                });
            }
        }
        ended
    }

    fn carry_out(&mut self, decision: scheduler::Decision) {
        match decision {
            scheduler::Decision::Start { job, places } => {
                let number = self.number(job);
                self.note(|| format!("job {number} starts on {} workers", places.len()));
                let change = self.db.jobs[number].state.on(Cause::Started).expect("a queued job");
                self.commit(|db| {
                    let job = &mut db.jobs[number];
                    job.state = change.to();
                    job.phase = Phase::Loading;
                    job.fence = Fence::loading(job.fence.attempt + 1);
                    job.members.clear();
                    job.places.clear();
                    job.steps_before = job.step;
                    places.iter().for_each(|place| job.seat(process_of(place.worker)));
                });
            }
            scheduler::Decision::Grow { job, places } => {
                let number = self.number(job);
                self.note(|| format!("job {number} grows by {} workers", places.len()));
                for place in places {
                    self.commit(|db| db.jobs[number].seat(process_of(place.worker)));
                    let job = &self.db.jobs[number];
                    if let Some(place) = job.places.last() {
                        self.coordinator.joined.insert(job.run(place.place), self.now);
                    }
                }
            }
            scheduler::Decision::Shrink { job, places, .. } => {
                let number = self.number(job);
                self.note(|| format!("job {number} gives back {places:?}"));
                self.commit(|db| {
                    for place in places {
                        if let Some(place) = db.jobs[number].place(PlaceNo(place)) {
                            place.leaving = true;
                        }
                    }
                });
            }
            scheduler::Decision::Preempt { .. } => unreachable!("no gang here is preemptible"),
            scheduler::Decision::Wait { .. } => {}
        }
    }
}
