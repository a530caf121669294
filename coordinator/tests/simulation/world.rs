//! The world: one clock, one queue of events, a network, a store, and the checks that nobody in it can see.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

use lorafleet_coordinator::{
    ids::{JobId, RunId},
    job::{JobState, MAX_INFRASTRUCTURE_FAILURES},
};

use crate::{
    coordinator::{Coordinator, POLL},
    database::{Database, Job},
    faults::Fault,
    messages::{Down, Gossip, Manifest, Up, Words},
    training::{Dice, State, Work},
    worker::{Defect, TICK, Worker},
};

/// Milliseconds since the beginning.
pub type Millis = u64;

/// The coordinator, as an end of a cut.
pub const COORDINATOR: usize = usize::MAX;
/// A failover forgets at most what was committed this long before it.
const LAG: Millis = 1_500;
/// A job that takes longer than this, with faults over long ago, hangs.
const LIMIT: Millis = 30 * 60 * 1000;
/// What did not get through is sent again after this time.
const AGAIN: Millis = 200;
/// Lines of the story that are told with a failure.
const STORY: usize = 400;

/// Something that happens at a time.
#[derive(Clone, Debug)]
pub enum Event {
    /// A message reaches a process.
    Down(usize, Down),
    /// A message reaches the coordinator.
    Up(usize, Up),
    /// A member's word reaches a process.
    Gossip { to: usize, sender: usize, since: Millis, gossip: Gossip },
    /// Nobody listens where a process sent this.
    Refused { sender: usize, dead: usize, gossip: Gossip },
    /// The coordinator sees a stream end.
    StreamClosed(usize),
    /// A process does what it does regularly.
    Tick(usize),
    /// A process has loaded.
    Loaded(usize, RunId),
    /// A process has sent the rest of its state.
    Sent { process: usize, run: RunId, generation: String },
    /// A process has computed its share.
    Computed { process: usize, run: RunId, generation: String, step: u64 },
    /// The store has answered a put.
    Stored { process: usize, run: RunId, manifest: Manifest, whole: bool },
    /// The coordinator looks.
    Look,
    /// What did not get through is sent again.
    Again(usize, usize),
    /// Something goes wrong, or right again.
    Fault(Fault),
}

/// Everything.
pub struct World {
    /// What the seed was.
    pub seed: u64,
    /// Now.
    pub now: Millis,
    /// Where a leader's clock started.
    pub epoch: Instant,
    /// Chance.
    pub dice: Dice,
    /// The rows.
    pub db: Database,
    /// The rows as they were, for a failover.
    pub history: VecDeque<(Millis, Database)>,
    /// Whether a failover is to come, so that history is kept.
    pub forgets: bool,
    /// Postgres answers.
    pub db_up: bool,
    /// The coordinator of the moment.
    pub coordinator: Coordinator,
    /// Workers by name.
    pub workers: Vec<Worker>,
    /// Each process's worker.
    pub processes: Vec<usize>,
    /// Whom what does not reach: from, to.
    pub cuts: BTreeSet<(usize, usize)>,
    /// Manifests in the store.
    pub store: Vec<Manifest>,
    /// The store answers.
    pub store_up: bool,
    /// Puts that fail, in a hundred.
    pub store_fails: u64,
    /// A defect of the workers that the checks must find.
    pub defect: Option<Defect>,
    /// Each job's work.
    pub works: Vec<Work>,
    /// Attempts that ended as lost.
    pub attempts_lost: u32,
    /// Failovers so far.
    pub failovers: u32,
    /// Checkpoints that were read.
    pub resumed: u32,
    /// When the last word on a connection arrives.
    links: BTreeMap<(usize, usize), Millis>,
    /// Words that wait for a cut to be mended: their senders send them again and again.
    held: BTreeMap<(usize, usize), Vec<(Millis, Event)>>,
    events: BTreeMap<(Millis, u64), Event>,
    order: u64,
    story: VecDeque<String>,
}

impl World {
    /// A fleet, and jobs.
    pub fn new(seed: u64, workers: usize, jobs: Vec<Job>, works: Vec<Work>) -> Self {
        let mut world = Self {
            seed,
            now: 0,
            epoch: Instant::now(),
            dice: Dice::new(seed),
            db: Database { jobs, ..Database::default() },
            history: VecDeque::new(),
            forgets: false,
            db_up: true,
            coordinator: Coordinator::new(),
            workers: Vec::new(),
            processes: Vec::new(),
            cuts: BTreeSet::new(),
            store: Vec::new(),
            store_up: true,
            store_fails: 0,
            defect: None,
            works,
            attempts_lost: 0,
            failovers: 0,
            resumed: 0,
            links: BTreeMap::new(),
            held: BTreeMap::new(),
            events: BTreeMap::new(),
            order: 0,
            story: VecDeque::new(),
        };
        for name in 0..workers {
            let slow = world.dice.between(1, 3);
            world.workers.push(Worker::new(0, slow));
            world.start(name);
        }
        world.at(POLL, Event::Look);
        world
    }

    /// Lets time pass until every job has ended.
    pub fn live(&mut self) {
        while !self.db.jobs.iter().all(|job| job.state.is_terminal()) || self.faults_pending() {
            let Some(((now, _), event)) = self.events.pop_first() else {
                panic!("{}", self.report("nothing happens"))
            };
            self.now = now;
            assert!(now < LIMIT, "{}", self.report("a job hangs"));
            self.happen(event);
        }
    }

    fn faults_pending(&self) -> bool {
        self.events.values().any(|event| matches!(event, Event::Fault(Fault::Failover(_))))
    }

    /// Something happens after a while.
    pub fn after(&mut self, wait: Millis, event: Event) {
        self.at(self.now + wait, event);
    }

    /// Something happens at a time.
    pub fn at(&mut self, at: Millis, event: Event) {
        self.order += 1;
        self.events.insert((at, self.order), event);
    }

    /// Changes the rows in one transaction.
    pub fn commit(&mut self, change: impl FnOnce(&mut Database)) {
        if self.forgets {
            self.history.push_back((self.now, self.db.clone()));
            while self.history.front().is_some_and(|(at, _)| at + LAG < self.now) {
                self.history.pop_front();
            }
        }
        change(&mut self.db);
    }

    /// Tells a process something, if it can be reached.
    pub fn tell(&mut self, process: usize, message: Down) {
        let wait = self.dice.between(1, 30);
        if !self.dice.percent(2) {
            self.after(wait, Event::Down(process, message));
        }
    }

    /// Tells the coordinator something, if it can be reached.
    pub fn say(&mut self, process: usize, message: Up) {
        let wait = self.dice.between(1, 30);
        if !self.dice.percent(2) {
            self.after(wait, Event::Up(process, message));
        }
    }

    /// Tells a member something.
    pub fn gossip(&mut self, sender: usize, to: usize, gossip: Gossip) {
        // A connection keeps the order of what is sent on it.
        let at = self.now + self.dice.between(1, 12);
        let last = self.links.entry((sender, to)).or_default();
        *last = at.max(*last);
        let at = *last;
        if self.dice.percent(4) {
            // What was sent over an older connection may come out of it late.
            let late = at + self.dice.between(20, 400);
            self.at(late, Event::Gossip { to, sender, since: self.now, gossip: gossip.clone() });
        }
        self.at(at, Event::Gossip { to, sender, since: self.now, gossip });
    }

    /// Whether a worker's process is the one that runs now.
    pub fn is_alive(&self, process: usize) -> bool {
        let worker = &self.workers[self.processes[process]];
        worker.alive && worker.process == process
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cuts.contains(&(from, to))
    }

    fn happen(&mut self, event: Event) {
        let process = match &event {
            Event::Down(process, _)
            | Event::Tick(process)
            | Event::Loaded(process, _)
            | Event::Sent { process, .. }
            | Event::Computed { process, .. }
            | Event::Stored { process, .. } => Some(*process),
            Event::Gossip { to, .. } => Some(*to),
            Event::Refused { sender, .. } => Some(*sender),
            Event::Up(..) | Event::StreamClosed(_) | Event::Look | Event::Fault(_) | Event::Again(..) => None,
        };
        let Some(process) = process else { return self.happen_elsewhere(event) };
        let name = self.processes[process];
        if let Event::Gossip { to, sender, since, gossip } = &event {
            let link = (*sender, *to);
            if self.is_cut(self.processes[*sender], name) || self.held.contains_key(&link) {
                if !self.held.contains_key(&link) {
                    self.after(AGAIN, Event::Again(link.0, link.1));
                }
                let since = *since;
                self.held.entry(link).or_default().push((since, event));
                return;
            }
            if !self.is_alive(*to) {
                let back = Event::Refused { sender: *sender, dead: *to, gossip: gossip.clone() };
                if !matches!(gossip.what, Words::Closed | Words::Left | Words::Later)
                    && self.is_alive(*sender)
                {
                    self.after(2, back);
                }
                return;
            }
        }
        if matches!(event, Event::Down(..)) && self.is_cut(COORDINATOR, name) || !self.is_alive(process) {
            return;
        }
        if self.workers[name].frozen {
            return self.workers[name].deferred.push_back(event);
        }
        match event {
            Event::Down(_, message) => self.told(name, message),
            Event::Tick(_) => self.tick(name),
            Event::Loaded(_, run) => self.loaded(name, run),
            Event::Sent { run, generation, .. } => self.send_rest(name, run, &generation),
            Event::Computed { run, generation, step, .. } => self.computed(name, run, &generation, step),
            Event::Stored { run, manifest, whole, .. } => self.stored(name, run, manifest, whole),
            Event::Gossip { gossip, sender, .. } => self.gossiped(name, sender, gossip),
            Event::Refused { dead, gossip, .. } => self.refused(name, dead, &gossip),
            Event::Up(..) | Event::StreamClosed(_) | Event::Look | Event::Fault(_) | Event::Again(..) => {}
        }
        self.pump(name);
        self.check_whole(name);
    }

    fn happen_elsewhere(&mut self, event: Event) {
        match event {
            Event::Up(process, message) if !self.is_cut(self.processes[process], COORDINATOR) => {
                self.hear(process, message);
            }
            Event::StreamClosed(process) if !self.is_cut(self.processes[process], COORDINATOR) => {
                self.stream_closed(process);
            }
            Event::Look => {
                self.coordinator_looks();
                self.after(POLL, Event::Look);
            }
            Event::Fault(fault) => self.strike(fault),
            Event::Again(sender, to) => self.send_again(sender, to),
            _ => {}
        }
    }

    /// What a cut held up gets through, in order, or goes on waiting; what is too old never comes.
    fn send_again(&mut self, sender: usize, to: usize) {
        if self.is_cut(self.processes[sender], self.processes[to]) {
            return self.after(AGAIN, Event::Again(sender, to));
        }
        for (since, event) in self.held.remove(&(sender, to)).into_iter().flatten() {
            if self.now < since + 30_000 {
                self.happen(event);
            }
        }
    }

    /// Starts a worker's process.
    pub fn start(&mut self, name: usize) {
        let process = self.processes.len();
        self.processes.push(name);
        let worker = &mut self.workers[name];
        *worker = Worker::new(process, worker.slow);
        worker.alive = true;
        self.note(|| format!("worker {name} starts as process {process}"));
        self.after(TICK, Event::Tick(process));
    }

    /// A job's number.
    pub fn number(&self, job: JobId) -> usize {
        self.db.jobs.iter().position(|j| j.id == job).expect("a job of this world")
    }

    /// The number of the job that a run belongs to.
    pub fn job_of(&self, run: RunId) -> usize {
        self.number(run.job)
    }

    /// Notes a line of the story.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if self.story.len() == STORY {
            self.story.pop_front();
        }
        self.story.push_back(format!("{:>8} {}", self.now, line()));
    }

    /// What happened last.
    pub fn story(&self) -> String {
        self.story.iter().map(|line| format!("{line}\n")).collect()
    }

    /// What to say when something is wrong.
    pub fn report(&self, what: &str) -> String {
        format!(
            "{what}; again with LORAFLEET_SIM_SEED={}\n{}{:?}\n{:#?}",
            self.seed,
            self.story(),
            self.workers.iter().map(|worker| &worker.run).collect::<Vec<_>>(),
            self.db.jobs
        )
    }

    // === what must hold ===

    /// A member holds this state now: it is the undisturbed one of its step.
    pub fn check_state(&self, job: usize, state: State) {
        let right = self.works[job].undisturbed.get(state.step as usize) == Some(&state);
        assert!(
            right,
            "{}",
            self.report(&format!("a state of step {} is not the undisturbed one", state.step))
        );
    }

    /// A member that held a whole state holds one.
    fn check_whole(&self, name: usize) {
        let lost = self.workers[name].run.as_ref().is_some_and(|run| run.had_whole && run.whole.is_none());
        assert!(!lost, "{}", self.report(&format!("worker {name} has lost its state")));
    }

    /// A member of the row's generation computes a step: no live member of the attempt holds it.
    pub fn check_step(&self, name: usize, job: usize, step: u64) {
        // After a failover a gang is taken up member by member, as they are heard: the first of them may compute the
        // step in flight again before one that had finished it has come. Never more than that one.
        let spared = u64::from(self.failovers > 0);
        let holder = self.other_holder(name, job).filter(|(_, state)| state.step >= step + spared);
        let what = || format!("worker {name} computes step {step} again, held by {holder:?}");
        assert!(holder.is_none(), "{}", self.report(&what()));
    }

    /// A member of the row's generation reads a checkpoint: no live member holds a state of another generation.
    pub fn check_read(&mut self, name: usize, job: usize) {
        self.resumed += 1;
        let own = self.workers[name].run.as_ref().map(|run| run.fence.clone());
        let holder = self.other_holder(name, job);
        let same =
            holder.is_some_and(|(other, _)| self.workers[other].run.as_ref().map(|r| r.fence.clone()) == own);
        let what = || format!("worker {name} reads a checkpoint beside {holder:?}");
        assert!(holder.is_none() || same, "{}", self.report(&what()));
    }

    /// Another worker with a live place in the job's attempt, with the greatest state, if `name` itself is in the
    /// generation that the rows know.
    fn other_holder(&self, name: usize, number: usize) -> Option<(usize, State)> {
        let job = &self.db.jobs[number];
        let own = self.workers[name].run.as_ref()?;
        let holds = |other: usize| -> Option<(usize, State)> {
            let worker = &self.workers[other];
            let run = worker.run.as_ref().filter(|run| worker.alive && run.job == number)?;
            let live = job
                .places
                .iter()
                .any(|p| p.process == worker.process && p.place == run.run.place && p.outcome.is_none());
            let current = job.is_running() && run.run.attempt == job.fence.attempt;
            run.whole.filter(|_| live && current && other != name).map(|state| (other, state))
        };
        let counts = own.fence == job.fence && job.is_running();
        (0..self.workers.len()).filter(|_| counts).filter_map(holds).max_by_key(|(_, state)| state.step)
    }

    /// What must hold at the end.
    pub fn check_end(&self) {
        for (number, job) in self.db.jobs.iter().enumerate() {
            let last = self.works[number].undisturbed.last().copied();
            if job.state == JobState::Failed {
                // Three attempts in a row lost all their workers before a new step.
                assert!(job.failures >= MAX_INFRASTRUCTURE_FAILURES, "{}", self.report("a job failed"));
                continue;
            }
            assert_eq!(job.state, JobState::Succeeded, "{}", self.report("a job did not succeed"));
            let result = job.result.as_ref().map(|manifest| manifest.state);
            assert_eq!(result, last, "{}", self.report("another adapter"));
            for (step, loss) in &job.points {
                let state = self.works[number].undisturbed[*step as usize];
                assert_eq!(*loss, crate::training::loss(state), "{}", self.report("another loss"));
            }
            let whole = self.attempts_lost > 0 || self.failovers > 0;
            let all = job.points.len() as u64 == self.works[number].steps();
            assert!(all || whole, "{}", self.report("the loss of a step was lost while a member lived"));
        }
    }
}
