//! A worker: it loads, enters generations, trains, parts, writes checkpoints, and says everything until it is heard.

mod gang;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lorafleet_coordinator::{
    ids::{Fence, RunId},
    membership::{Evidence, Suspicion},
};

use crate::{
    messages::{Down, End, Ended, Gossip, Manifest, Peer, Share, Up, Words},
    training::State,
    world::{Event, Millis, World},
};

/// How often a worker does what it does regularly.
pub const TICK: Millis = 250;
/// No ping for this long: silent.
const SILENCE: Millis = 5_000;
/// Pings, but no part in an operation for this long: stuck.
const STUCK: Millis = 12_000;
/// Members other than index 0 send points after this time.
const HOLD: Millis = 2_000;
/// Steps between checkpoints.
const EVERY: u64 = 5;
/// Words of a later generation that are kept until its Begin comes.
const EARLY: usize = 200;

/// A worker, and the process that it is now.
pub struct Worker {
    /// The process.
    pub process: usize,
    /// It runs.
    pub alive: bool,
    /// It is stopped (SIGSTOP).
    pub frozen: bool,
    /// What happened to it meanwhile.
    pub deferred: VecDeque<Event>,
    /// It was asked to leave (SIGTERM).
    pub draining: bool,
    /// How slow it is.
    pub slow: u64,
    /// What it runs.
    pub run: Option<Run>,
    /// Runs that it had: never taken twice.
    taken: BTreeSet<RunId>,
    /// Ends that were not acknowledged.
    ended: Vec<(End, Ended)>,
    ticks: u64,
}

/// A defect that the checks must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The words of every generation count.
    FenceOff,
    /// After a change, micro-batches are dealt by the membership before.
    DealByOldMembership,
    /// A state that is received replaces the own one piece by piece.
    BroadcastInPlace,
    /// Who parts from a broken collective drops its state, and reads the last checkpoint again.
    ForgetState,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Loading,
    Ready,
    Entering(u8),
    Training,
    Parted,
    /// All leave, and it writes the checkpoint.
    Closing,
}

/// One place's run.
#[derive(Debug)]
pub struct Run {
    /// Its name.
    pub run: RunId,
    /// The job's number.
    pub job: usize,
    /// The generation that it is in; generation 0 while it loads.
    pub fence: Fence,
    /// The whole state.
    pub whole: Option<State>,
    /// It has held one.
    pub had_whole: bool,
    stage: Stage,
    members: Vec<Peer>,
    index: usize,
    resume: Vec<Manifest>,
    half: bool,
    before: Option<(usize, Vec<u32>)>,
    offered: Option<(State, Vec<(u64, u64)>)>,
    regroup: bool,
    leave: bool,
    computing: bool,
    hellos: BTreeMap<(u8, usize), Option<State>>,
    shares: BTreeMap<(u64, usize), Share>,
    /// Of each member, as the last step told.
    speeds: Vec<u32>,
    early: Vec<(usize, Gossip)>,
    heard: Vec<Option<Millis>>,
    entered: Millis,
    moved: Millis,
    suspicions: Vec<Suspicion>,
    points: BTreeMap<u64, (u64, Millis)>,
    written: Vec<Manifest>,
    putting: bool,
}

impl Worker {
    /// One that has not started.
    pub fn new(process: usize, slow: u64) -> Self {
        Self {
            process,
            alive: false,
            frozen: false,
            deferred: VecDeque::new(),
            draining: false,
            slow,
            run: None,
            taken: BTreeSet::new(),
            ended: Vec::new(),
            ticks: 0,
        }
    }
}

impl Run {
    fn new(run: RunId, job: usize) -> Self {
        Self {
            run,
            job,
            fence: Fence::loading(run.attempt),
            whole: None,
            had_whole: false,
            stage: Stage::Loading,
            members: Vec::new(),
            index: 0,
            resume: Vec::new(),
            half: false,
            before: None,
            offered: None,
            regroup: false,
            leave: false,
            computing: false,
            hellos: BTreeMap::new(),
            shares: BTreeMap::new(),
            speeds: Vec::new(),
            early: Vec::new(),
            heard: Vec::new(),
            entered: 0,
            moved: 0,
            suspicions: Vec::new(),
            points: BTreeMap::new(),
            written: Vec::new(),
            putting: false,
        }
    }

    fn is_together(&self) -> bool {
        matches!(self.stage, Stage::Entering(_) | Stage::Training)
    }

    fn all<T: Copy>(&self, said: impl Fn(usize) -> Option<T>) -> Option<Vec<T>> {
        (0..self.members.len()).map(said).collect()
    }

    fn hellos(&self, round: u8) -> Option<Vec<Option<State>>> {
        self.all(|index| self.hellos.get(&(round, index)).copied())
    }
}

impl World {
    fn run(&mut self, name: usize) -> Option<&mut Run> {
        self.workers[name].run.as_mut()
    }

    /// The coordinator's word.
    pub fn told(&mut self, name: usize, message: Down) {
        let (now, process) = (self.now, self.workers[name].process);
        let own =
            |world: &Self, run: RunId| world.workers[name].run.as_ref().is_some_and(|own| own.run == run);
        match message {
            Down::Assign(run) => self.assign(name, run),
            Down::Begin { run, fence, members, resume } if own(self, run) => {
                self.begin(name, &fence, members, resume);
            }
            Down::Regroup { run, fence } if own(self, run) => {
                if let Some(run) = self.run(name).filter(|run| run.fence == fence) {
                    run.regroup = true;
                }
            }
            Down::Leave(run) if own(self, run) => self.leave(name),
            Down::Stop(run) if own(self, run) => {
                self.note(|| format!("worker {name} stops {run}"));
                self.finish(name, Ended::Stopped);
            }
            Down::Stop(run) => self.decline(name, run),
            Down::ProgressAck { run, step } if own(self, run) => {
                let Some(run) = self.run(name) else { return };
                run.points.retain(|of, (_, at)| *of > step || now < *at);
            }
            Down::WrittenAck { run, step } if own(self, run) => {
                let Some(run) = self.run(name) else { return };
                run.written.retain(|manifest| manifest.state.step != step);
            }
            Down::FinishedAck(run) => self.workers[name].ended.retain(|(end, _)| end.run != run),
            Down::Unknown => {
                self.note(|| format!("process {process} of worker {name} has no lease any more"));
                self.depart(name, Words::Closed);
                let draining = self.workers[name].draining;
                self.start(name);
                self.workers[name].draining = draining;
            }
            _ => {}
        }
    }

    fn assign(&mut self, name: usize, run: RunId) {
        let job = self.job_of(run);
        let worker = &mut self.workers[name];
        if worker.run.is_some() {
            return;
        }
        if !worker.taken.insert(run) || worker.draining {
            // It had this place before, or goes: whoever assigns it is told.
            self.decline(name, run);
            return;
        }
        worker.run = Some(Run::new(run, job));
        let (process, wait) = (worker.process, self.dice.between(200, 4_000));
        self.after(wait, Event::Loaded(process, run));
    }

    /// Answers for a run that is not held here, until it is acknowledged.
    fn decline(&mut self, name: usize, run: RunId) {
        let ended = &mut self.workers[name].ended;
        if !ended.iter().any(|(end, _)| end.run == run) {
            ended.push((End { run, fence: Fence::loading(run.attempt), points: Vec::new() }, Ended::Stopped));
        }
    }

    /// Base and data are loaded.
    pub fn loaded(&mut self, name: usize, run: RunId) {
        let process = self.workers[name].process;
        let Some(own) = self.run(name).filter(|own| own.run == run && own.stage == Stage::Loading) else {
            return;
        };
        own.stage = Stage::Ready;
        self.say(process, Up::Ready(run));
    }

    /// It should give its place back.
    pub fn leave(&mut self, name: usize) {
        let Some(run) = self.run(name) else { return };
        run.leave = true;
        if matches!(run.stage, Stage::Loading | Stage::Ready) {
            self.finish(name, Ended::Released);
        }
    }

    fn begin(&mut self, name: usize, fence: &Fence, members: Vec<Peer>, resume: Vec<Manifest>) {
        let (now, process) = (self.now, self.workers[name].process);
        let Some(run) = self.run(name) else { return };
        let place = run.run.place;
        let index = members.iter().position(|peer| peer.place == place && peer.process == process);
        let newer = fence.attempt == run.run.attempt && fence.generation > run.fence.generation;
        let Some(index) = index.filter(|_| newer && !matches!(run.stage, Stage::Loading | Stage::Closing))
        else {
            return;
        };
        if run.is_together() {
            self.depart(name, Words::Left);
        }
        let Some(run) = self.run(name) else { return };
        let early = std::mem::take(&mut run.early);
        run.before = (run.fence.generation > 0).then(|| (run.index, run.speeds.clone()));
        run.stage = Stage::Entering(0);
        run.fence = fence.clone();
        run.heard = vec![None; members.len()];
        run.speeds = vec![0; members.len()];
        (run.members, run.index, run.resume) = (members, index, resume);
        (run.half, run.regroup, run.computing, run.offered) = (false, false, false, None);
        (run.entered, run.moved) = (now, now);
        run.hellos.clear();
        run.shares.clear();
        run.suspicions.clear();
        self.hello(name, 0);
        for (sender, gossip) in early {
            self.gossiped(name, sender, gossip);
        }
    }

    fn hello(&mut self, name: usize, round: u8) {
        let Some(run) = self.run(name) else { return };
        let whole = run.whole;
        run.hellos.insert((round, run.index), whole);
        self.tell_peers(name, &Words::Hello { round, whole });
    }

    fn tell_peers(&mut self, name: usize, what: &Words) {
        let process = self.workers[name].process;
        let Some(run) = self.run(name) else { return };
        let peers: Vec<usize> =
            run.members.iter().map(|peer| peer.process).filter(|p| *p != process).collect();
        let gossip = Gossip { fence: run.fence.clone(), from: run.index, what: what.clone() };
        for peer in peers {
            self.gossip(process, peer, gossip.clone());
        }
    }

    /// Leaves the collective, and says so to its peers.
    fn depart(&mut self, name: usize, word: Words) {
        self.tell_peers(name, &word);
    }

    /// The process ends at once; its sockets close.
    pub fn die(&mut self, name: usize) {
        let process = self.workers[name].process;
        self.depart(name, Words::Closed);
        let worker = &mut self.workers[name];
        *worker = Worker::new(process, worker.slow);
        self.after(2, Event::StreamClosed(process));
    }

    fn finish(&mut self, name: usize, ended: Ended) {
        self.depart(name, Words::Left);
        let worker = &mut self.workers[name];
        let Some(run) = worker.run.take() else { return };
        let points = run.points.iter().map(|(step, (loss, _))| (*step, *loss)).collect();
        let end = End { run: run.run, fence: run.fence, points };
        worker.ended.push((end.clone(), ended.clone()));
        let process = worker.process;
        self.say(process, Up::Finished { end, ended });
    }

    fn part(&mut self, name: usize, suspicions: Vec<Suspicion>) {
        self.note(|| format!("worker {name} parts, and suspects {suspicions:?}"));
        self.depart(name, Words::Left);
        let (process, defect) = (self.workers[name].process, self.defect);
        let Some(run) = self.run(name) else { return };
        run.stage = Stage::Parted;
        run.suspicions = suspicions;
        if defect == Some(Defect::ForgetState) {
            run.whole = None;
        }
        (run.half, run.computing) = (false, false);
        let parted = run.parted();
        self.say(process, parted);
    }

    /// Writes a manifest; one at a time.
    fn put(&mut self, name: usize) {
        let (wait, up) = (self.dice.between(50, 900), self.store_up);
        let fails = self.dice.percent(self.store_fails);
        let process = self.workers[name].process;
        let Some(run) = self.run(name).filter(|run| !run.putting) else { return };
        let Some(state) = run.whole else { return };
        run.putting = true;
        let manifest = Manifest { job: run.job, fence: run.fence.clone(), state };
        let run = run.run;
        self.after(wait, Event::Stored { process, run, manifest, whole: up && !fails });
    }

    /// The store has answered, or has not.
    pub fn stored(&mut self, name: usize, id: RunId, manifest: Manifest, whole: bool) {
        let steps = self.works[self.job_of(id)].steps();
        // It may be whole although the answer says otherwise.
        if (whole || self.store_up && self.dice.percent(30)) && !self.store.contains(&manifest) {
            let clash = self.store.iter().any(|m| {
                (m.job, m.state.step, &m.fence) == (manifest.job, manifest.state.step, &manifest.fence)
            });
            assert!(!clash, "{}", self.report("two manifests of one name"));
            self.store.push(manifest.clone());
        }
        let process = self.workers[name].process;
        let Some(run) = self.run(name).filter(|run| run.run == id) else { return };
        run.putting = false;
        if !whole {
            return;
        }
        let is_final = manifest.state.step == steps;
        if run.stage == Stage::Closing {
            run.written.push(manifest.clone());
            self.say(process, Up::Written { run: id, manifest });
            self.finish(name, Ended::Released);
        } else if is_final {
            if run.fence == manifest.fence && run.stage == Stage::Training {
                self.finish(name, Ended::Succeeded(manifest));
            }
        } else {
            run.written.push(manifest.clone());
            self.say(process, Up::Written { run: id, manifest });
        }
    }

    /// What it does regularly.
    pub fn tick(&mut self, name: usize) {
        let (now, process) = (self.now, self.workers[name].process);
        self.after(TICK, Event::Tick(process));
        self.watch_peers(name);
        self.workers[name].ticks += 1;
        if self.workers[name].ticks.is_multiple_of(4) {
            self.tell_peers_if_together(name);
            self.repeat(name);
        }
        let worker = &self.workers[name];
        let index = worker.run.as_ref().map_or(0, |run| run.index);
        if let Some(run) = &worker.run {
            let due = |(_, (_, at)): &(&u64, &(u64, Millis))| index == 0 || now >= at + HOLD;
            if run.points.iter().any(|point| due(&point)) && run.fence.generation > 0 {
                let points = run.points.iter().map(|(step, (loss, _))| (*step, *loss)).collect();
                let progress = Up::Progress { run: run.run, fence: run.fence.clone(), points };
                self.say(process, progress);
            }
        }
        let worker = &self.workers[name];
        if worker.draining && worker.run.is_none() && worker.ended.is_empty() {
            self.note(|| format!("worker {name} exits"));
            self.die(name);
            let wait = self.dice.between(500, 5_000);
            self.after(wait, Event::Fault(crate::faults::Fault::Start(name)));
        }
    }

    fn tell_peers_if_together(&mut self, name: usize) {
        if self.run(name).is_some_and(|run| run.is_together()) {
            self.tell_peers(name, &Words::Ping);
        }
    }

    /// Says again what was not acknowledged.
    fn repeat(&mut self, name: usize) {
        let worker = &self.workers[name];
        let process = worker.process;
        let running = worker.run.as_ref().map(|run| (run.run, run.fence.clone(), run.fence.generation > 0));
        let mut again = vec![Up::Heartbeat { running, draining: worker.draining }];
        if let Some(run) = &worker.run {
            match run.stage {
                Stage::Ready => again.push(Up::Ready(run.run)),
                Stage::Parted => again.push(run.parted()),
                Stage::Loading | Stage::Entering(_) | Stage::Training | Stage::Closing => {}
            }
            let written = run.written.iter().cloned();
            again.extend(written.map(|manifest| Up::Written { run: run.run, manifest }));
        }
        let ended = worker.ended.iter().cloned();
        again.extend(ended.map(|(end, ended)| Up::Finished { end, ended }));
        again.into_iter().for_each(|message| self.say(process, message));
    }

    /// Looks whether a peer has fallen silent, or takes no part.
    fn watch_peers(&mut self, name: usize) {
        let now = self.now;
        let steps = self.workers[name].run.as_ref().map_or(0, |run| self.works[run.job].steps());
        let Some(run) = self.run(name).filter(|run| run.is_together()) else { return };
        let mut suspicions = Vec::new();
        for index in (0..run.members.len()).filter(|index| *index != run.index) {
            let last = run.heard[index].unwrap_or(run.entered);
            if now - last > SILENCE {
                let evidence =
                    if run.heard[index].is_some() { Evidence::Silent } else { Evidence::Unreachable };
                suspicions.push(Suspicion { index: index as u32, evidence });
            }
        }
        let training = run.stage == Stage::Training;
        let waits = !training || run.whole.is_none_or(|whole| whole.step < steps) && !run.computing;
        if suspicions.is_empty() && waits && now - run.moved > STUCK {
            let said = |index: &usize| match (run.stage, run.whole) {
                (Stage::Entering(round), _) => run.hellos.contains_key(&(round, *index)),
                (_, Some(whole)) => run.shares.contains_key(&(whole.step + 1, *index)),
                _ => true,
            };
            let missing = (0..run.members.len()).filter(|index| !said(index) && *index != run.index);
            let stuck = |index| Suspicion { index: index as u32, evidence: Evidence::Stuck };
            suspicions = missing.map(stuck).collect();
        }
        if !suspicions.is_empty() {
            self.part(name, suspicions);
        }
    }
}

impl Run {
    fn parted(&self) -> Up {
        Up::Parted {
            run: self.run,
            fence: self.fence.clone(),
            step: self.whole.map_or(0, |whole| whole.step),
            suspicions: self.suspicions.clone(),
        }
    }
}
