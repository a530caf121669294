//! The coordinator around its pure rules: what it hears, looks at regularly, and tells.

mod lead;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lorafleet_coordinator::{
    bars::Bars,
    ids::{Fence, PlaceNo, RunId, TenantId, WorkerId},
    job::{Cause, JobState, MemberOutcome, Phase, infrastructure_failures},
    membership::{self, Decision, Seat, Standing, Stream, View, Why},
    scheduler,
    stillness::Stillness,
};
use uuid::Uuid;

use crate::{
    database::{Job, Lease, Place},
    messages::{Down, Ended, Manifest, Peer, Up},
    world::{Millis, World},
};

/// How often a coordinator looks.
pub const POLL: Millis = 250;
/// Heartbeats that do not list a place which had loaded after which its worker has lost it.
const FORGOTTEN_AFTER: u32 = 4;

/// What one coordinator process remembers; its successor begins with nothing.
pub struct Coordinator {
    /// It runs.
    pub up: bool,
    leases: Stillness<usize>,
    streams: BTreeMap<usize, Shown>,
    closed: BTreeSet<usize>,
    queued_since: BTreeMap<usize, Millis>,
    idle_since: BTreeMap<usize, Millis>,
    parted_since: BTreeMap<String, Millis>,
    joined: BTreeMap<RunId, Millis>,
    bars: Bars,
}

/// What a worker's stream shows.
struct Shown {
    heard: Millis,
    running: Option<(RunId, Fence, bool)>,
    missing: u32,
}

impl Coordinator {
    /// One that has just started.
    pub fn new() -> Self {
        Self {
            up: true,
            leases: Stillness::new(),
            streams: BTreeMap::new(),
            closed: BTreeSet::new(),
            queued_since: BTreeMap::new(),
            idle_since: BTreeMap::new(),
            parted_since: BTreeMap::new(),
            joined: BTreeMap::new(),
            bars: Bars::default(),
        }
    }

    /// For a while nothing could be seen.
    pub fn lost_sight(&mut self) {
        self.leases.reset();
    }
}

fn worker_id(process: usize) -> WorkerId {
    WorkerId(Uuid::from_u128(process as u128))
}

fn process_of(worker: WorkerId) -> usize {
    worker.0.as_u128() as usize
}

impl World {
    /// A worker's message has come.
    pub fn hear(&mut self, process: usize, message: Up) {
        if !self.coordinator.up || !self.db_up {
            return;
        }
        let name = self.processes[process];
        if !self.db.leases.contains_key(&process) {
            // Registering ends what an earlier process of that name held.
            self.commit(|db| {
                db.leases
                    .values_mut()
                    .filter(|lease| lease.name == name)
                    .for_each(|lease| lease.live = false);
                db.leases.insert(process, Lease { name, counter: 0, live: true, draining: false });
            });
        }
        if !self.db.leases[&process].live {
            return self.tell(process, Down::Unknown);
        }
        match message {
            Up::Heartbeat { running, draining } => self.heartbeat(process, running, draining),
            Up::Ready(run) => {
                self.change(process, run, |place, _| place.ready = true);
                self.advance(self.job_of(run));
            }
            Up::Progress { run, fence, points } => self.progress(process, run, &fence, &points),
            Up::Written { run, manifest } => self.written(process, run, manifest),
            Up::Parted { run, fence, step, suspicions } => {
                let job = self.job_of(run);
                if self.db.jobs[job].fence == fence {
                    self.change(process, run, |place, _| {
                        place.parted.get_or_insert((step, suspicions));
                    });
                    self.advance(job);
                }
            }
            Up::Finished { end, ended } => {
                self.progress(process, end.run, &end.fence, &end.points);
                self.finished(process, end.run, ended);
            }
        }
    }

    /// A worker's stream was seen to end.
    pub fn stream_closed(&mut self, process: usize) {
        if self.coordinator.up && self.db_up {
            self.coordinator.streams.remove(&process);
            self.coordinator.closed.insert(process);
            for job in 0..self.db.jobs.len() {
                self.advance(job);
            }
        }
    }

    /// Changes a live place of a running attempt; false: it is none.
    fn change(&mut self, process: usize, run: RunId, change: impl FnOnce(&mut Place, &Fence)) -> bool {
        let job = self.job_of(run);
        let held = self.db.jobs[job].held(process, run).is_some();
        if held {
            self.commit(|db| {
                let fence = db.jobs[job].fence.clone();
                if let Some(place) = db.jobs[job].held(process, run) {
                    change(place, &fence);
                }
            });
        }
        held
    }

    fn heartbeat(&mut self, process: usize, running: Option<(RunId, Fence, bool)>, draining: bool) {
        if let Some(lease) = self.db.leases.get_mut(&process) {
            lease.counter += 1;
            lease.draining = draining;
        }
        self.coordinator.closed.remove(&process);
        let before = self.coordinator.streams.get(&process).map_or(0, |shown| shown.missing);
        let mut held = None;
        for job in &self.db.jobs {
            let live =
                job.places.iter().find(|p| job.is_running() && p.process == process && p.outcome.is_none());
            held = held.or(live.map(|place| (job.run(place.place), place.ready)));
        }
        let lacks =
            held.is_some_and(|(run, ready)| ready && running.as_ref().is_none_or(|(own, ..)| *own != run));
        let missing = if lacks { before + 1 } else { 0 };
        if let Some((run, fence, _)) = &running {
            self.reclaim(process, *run, &fence.clone());
        }
        self.coordinator.streams.insert(process, Shown { heard: self.now, running, missing });
        if let Some((run, _)) = held.filter(|_| missing >= FORGOTTEN_AFTER) {
            self.end_place(process, run, MemberOutcome::Lost);
        }
    }

    /// Goes on with a gang that is ahead of its rows.
    fn reclaim(&mut self, process: usize, run: RunId, fence: &Fence) {
        let number = self.job_of(run);
        let job = &self.db.jobs[number];
        let row = job.fence.clone();
        if job.state.is_terminal() || run.attempt < row.attempt {
            return;
        }
        let known = job.places.iter().find(|p| run.attempt == row.attempt && p.place == run.place);
        let mine = known.is_some_and(|p| p.process == process);
        let attempt = run.attempt > row.attempt;
        let running = attempt || job.is_running();
        let ahead = attempt
            || fence.generation > row.generation
            || (fence.generation == row.generation && fence.generation_id != row.generation_id);
        let ended = known.is_some_and(|p| p.outcome.is_some());
        let unready = known.is_some_and(|p| !p.ready) && fence.generation > 0;
        if !running || (!ahead && (ended || known.is_some() && !mine || !unready && mine)) {
            return;
        }
        self.note(|| format!("reclaims {run} under {fence} above {row}"));
        let generation = fence.generation > 0 && ahead;
        self.commit(|db| {
            let job = &mut db.jobs[number];
            if attempt {
                job.state = JobState::Running;
                job.phase = Phase::Loading;
                job.fence = Fence::loading(run.attempt);
                job.places.clear();
                job.members.clear();
                job.steps_before = job.step;
            }
            job.places.retain(|p| p.place != run.place);
            job.places.push(Place {
                place: run.place,
                process,
                ready: fence.generation > 0,
                parted: None,
                outcome: None,
                leaving: false,
            });
            job.places.sort_by_key(|p| p.place);
        });
        if generation {
            let live = |p: &&Place| p.outcome.is_none() && p.ready;
            let members = self.db.jobs[number].places.iter().filter(live).map(|p| p.place).collect();
            self.open(number, members, fence.generation);
        }
    }

    fn progress(&mut self, process: usize, run: RunId, fence: &Fence, points: &[(u64, u64)]) {
        let job = self.job_of(run);
        let counts = self.db.jobs[job].held(process, run).is_some()
            && self.db.jobs[job].fence == *fence
            && self.db.jobs[job].index(run.place).is_some();
        if !counts {
            return;
        }
        for (step, loss) in points {
            let before = self.db.jobs[job].points.get(step);
            assert!(before.is_none_or(|before| before == loss), "{}", self.report("a step has two losses"));
        }
        self.commit(|db| {
            db.jobs[job].points.extend(points.iter().copied());
            let last = db.jobs[job].points.keys().max().copied().unwrap_or_default();
            db.jobs[job].step = db.jobs[job].step.max(last);
        });
        let Some(step) = points.iter().map(|(step, _)| *step).max() else { return };
        for place in self.db.jobs[job].places.clone() {
            let own = self.db.jobs[job].run(place.place);
            self.tell(place.process, Down::ProgressAck { run: own, step });
        }
    }

    fn written(&mut self, process: usize, run: RunId, manifest: Manifest) {
        let job = self.job_of(run);
        let step = manifest.state.step;
        if self.db.jobs[job].held(process, run).is_some() && manifest.fence.attempt == run.attempt {
            self.keep(job, manifest);
            self.tell(process, Down::WrittenAck { run, step });
        }
    }

    fn keep(&mut self, job: usize, manifest: Manifest) {
        self.commit(|db| {
            let job = &mut db.jobs[job];
            job.step = job.step.max(manifest.state.step);
            if !job.checkpoints.contains(&manifest) {
                job.checkpoints.push(manifest);
            }
        });
    }

    fn finished(&mut self, process: usize, run: RunId, ended: Ended) {
        let job = self.job_of(run);
        self.tell(process, Down::FinishedAck(run));
        if let Some(shown) = self.coordinator.streams.get_mut(&process) {
            shown.running.take_if(|(own, ..)| *own == run);
        }
        let member = self.db.jobs[job].index(run.place).is_some();
        if self.db.jobs[job].held(process, run).is_none() {
            return;
        }
        match ended {
            Ended::Succeeded(manifest) if member => self.succeed(job, manifest),
            Ended::Succeeded(_) => self.end_place(process, run, MemberOutcome::Succeeded),
            Ended::Released => self.end_place(process, run, MemberOutcome::Released),
            Ended::Stopped => self.end_place(process, run, MemberOutcome::Stopped),
        }
    }

    fn succeed(&mut self, number: usize, manifest: Manifest) {
        self.note(|| format!("job {number} succeeds with {manifest:?}"));
        self.keep(number, manifest.clone());
        let change = self.db.jobs[number].state.on(Cause::Succeeded).expect("a running job");
        self.commit(|db| {
            let job = &mut db.jobs[number];
            job.state = change.to();
            job.phase = Phase::Ended;
            job.result = Some(manifest);
            job.places.iter_mut().for_each(|p| {
                p.outcome.get_or_insert(MemberOutcome::Stopped);
            });
        });
    }

    fn end_place(&mut self, process: usize, run: RunId, outcome: MemberOutcome) {
        self.note(|| format!("place {run} of process {process} ends: {outcome:?}"));
        self.change(process, run, |place, _| place.outcome = Some(outcome));
        self.advance(self.job_of(run));
    }

    /// Carries a job's attempt on as far as it can go now. True when its members should part politely.
    fn advance(&mut self, number: usize) -> bool {
        if !self.db.jobs[number].is_running() {
            return false;
        }
        let decision = membership::decide(&self.view(number));
        match decision {
            Decision::Wait { regroup, .. } => return regroup,
            Decision::Open { members, removed } => {
                self.note(|| format!("job {number} opens with {members:?}, without {removed:?}"));
                for removal in removed {
                    let dead = matches!(
                        removal.why,
                        Why::Late
                            | Why::Dead {
                                evidence: membership::Evidence::Gone | membership::Evidence::Unreachable,
                                ..
                            }
                    );
                    let outcome = if dead { MemberOutcome::Lost } else { MemberOutcome::Expelled };
                    self.commit(|db| {
                        if let Some(place) = db.jobs[number].place(removal.place) {
                            place.outcome = Some(outcome);
                        }
                    });
                }
                self.open(number, members, 0);
            }
            Decision::Close => self.commit(|db| db.jobs[number].phase = Phase::Closing),
            Decision::Dissolve { released } => self.dissolve(number, released),
        }
        false
    }

    fn view(&mut self, number: usize) -> View {
        let now = self.now;
        let job = &self.db.jobs[number];
        let in_view =
            |p: &&Place| p.outcome.is_none() || job.index(p.place).is_some() || job.members.is_empty();
        let parted = job.places.iter().any(|p| p.parted.is_some());
        let key = job.fence.generation_id.clone();
        let waited = if parted { now - *self.coordinator.parted_since.entry(key).or_insert(now) } else { 0 };
        let seats = job.places.iter().filter(in_view).map(|place| {
            let index = job.index(place.place).map(|index| index as u32);
            let standing = match (&place.outcome, &place.parted) {
                (Some(outcome), _) => Standing::Ended(*outcome),
                (None, Some((_, suspicions))) if index.is_some() => Standing::Parted(suspicions.clone()),
                (None, _) if place.ready || index.is_some() => Standing::Ready,
                (None, _) => Standing::Loading,
            };
            let stream = self.coordinator.stream(place.process, now);
            let step = place.parted.as_ref().map_or(0, |(step, _)| *step);
            Seat { place: place.place, index, standing, stream, step }
        });
        let steps = job.places.iter().filter_map(|p| p.parted.as_ref()).map(|(step, _)| *step);
        View {
            min: job.min,
            phase: job.phase,
            seats: seats.collect(),
            waited: Duration::from_millis(waited),
            progressed: steps.max().is_some_and(|step| step > job.start_step),
            overdue: false,
        }
    }

    fn open(&mut self, number: usize, members: Vec<PlaceNo>, above: u32) {
        let id = format!("{:016x}", self.dice.below(u64::MAX));
        // As `checkpoints::adopt` does: manifests of earlier attempts whose fence the job really had.
        let store = self.store.clone();
        self.commit(|db| {
            let job = &mut db.jobs[number];
            if job.phase == Phase::Loading {
                let had = |m: &&Manifest| {
                    m.job == number
                        && m.fence.attempt < job.fence.attempt
                        && job.generations.iter().any(|(fence, _)| *fence == m.fence)
                };
                let adopted: Vec<Manifest> = store.iter().filter(had).cloned().collect();
                for manifest in adopted {
                    if !job.checkpoints.contains(&manifest) {
                        job.checkpoints.push(manifest);
                    }
                }
            }
            let steps = job.places.iter().filter_map(|p| p.parted.as_ref()).map(|(step, _)| *step);
            job.start_step = steps.max().unwrap_or(job.start_step);
            let generation = job.fence.generation.max(above) + 1;
            job.fence = Fence { attempt: job.fence.attempt, generation, generation_id: id };
            job.generations.push((job.fence.clone(), members.clone()));
            job.members = members;
            job.phase = Phase::Training;
            job.places.iter_mut().for_each(|p| p.parted = None);
        });
        for place in self.db.jobs[number].members.clone() {
            self.tell_begin(number, place);
        }
    }

    fn tell_begin(&mut self, number: usize, place: PlaceNo) {
        let job = &self.db.jobs[number];
        let process =
            |place: &PlaceNo| job.places.iter().find(|p| p.place == *place).map_or(0, |p| p.process);
        let members =
            job.members.iter().map(|place| Peer { process: process(place), place: *place }).collect();
        let mut resume = job.checkpoints.clone();
        resume.sort_by_key(|manifest| std::cmp::Reverse(manifest.state.step));
        resume.truncate(8);
        let to = process(&place);
        let begin = Down::Begin { run: job.run(place), fence: job.fence.clone(), members, resume };
        self.tell(to, begin);
    }

    fn dissolve(&mut self, number: usize, released: bool) {
        let job = &self.db.jobs[number];
        let (count, exhausted) = infrastructure_failures(job.failures, job.step > job.steps_before);
        let cause = if released { Cause::Released } else { Cause::Lost { exhausted } };
        let change = job.state.on(cause).expect("a running job");
        self.note(|| format!("job {number} dissolves: {cause:?}"));
        self.attempts_lost += u32::from(!released);
        self.commit(|db| {
            let job = &mut db.jobs[number];
            job.state = change.to();
            job.phase = Phase::Ended;
            if !released {
                job.failures = count;
            }
            job.places.iter_mut().for_each(|p| {
                p.outcome.get_or_insert(MemberOutcome::Stopped);
            });
        });
    }
}

impl Coordinator {
    fn stream(&self, process: usize, now: Millis) -> Stream {
        match self.streams.get(&process) {
            Some(shown) if now - shown.heard < 3_000 => Stream::Open,
            _ if self.closed.contains(&process) => Stream::Closed,
            _ => Stream::Unknown,
        }
    }

    fn gang(&self, job: &Job, barred: BTreeSet<WorkerId>, now: Millis) -> scheduler::Gang {
        let seats = job.places.iter().filter(|p| p.outcome.is_none());
        let joined = |p: &Place| self.joined.get(&job.run(p.place)).map(|at| Duration::from_millis(now - at));
        scheduler::Gang {
            job: job.id,
            tenant: TenantId::DEFAULT,
            priority: job.priority,
            min: job.min,
            max: job.max,
            standing: match job.phase {
                Phase::Training => scheduler::Standing::Training,
                Phase::Loading => scheduler::Standing::Loading,
                Phase::Closing | Phase::Ended => scheduler::Standing::Ending,
            },
            kinds: vec!["k".into()],
            selector: scheduler::Labels::none(),
            base: None,
            age: Duration::ZERO,
            left: None,
            preemptible: false,
            seats: seats
                .map(|p| scheduler::Seat {
                    place: p.place.0,
                    worker: worker_id(p.process),
                    leaving: p.leaving,
                    joined: joined(p),
                })
                .collect(),
            barred,
        }
    }
}
