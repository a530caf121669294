//! Everything that there is at one moment: the row, the workers, what was said, and the store.

use std::collections::BTreeSet;

use crate::{Faults, Gangs, Mutant, coordinator::Act as Coordinates, faults::Fault, worker::Act as Works};

/// What tells one generation from every other; `id` stands for the random one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fence {
    /// The attempt, from 1.
    pub attempt: u8,
    /// The generation within the attempt, from 1; 0 while the gang loads.
    pub generation: u8,
    /// Never drawn twice.
    pub id: u8,
}

/// What a member trains: the steps done, and 0 as long as each of their sums was right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State {
    /// Steps done.
    pub step: u8,
    /// Differs where a sum was wrong.
    pub digest: u16,
}

/// A manifest in the store, or its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Checkpoint {
    /// Its path names the fence.
    pub fence: Fence,
    /// What it holds.
    pub state: State,
}

/// A generation as its Begin tells it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation {
    /// Its fence.
    pub fence: Fence,
    /// Workers and their places, by index.
    pub members: Vec<(u8, u8)>,
    /// The newest whole checkpoint, for a gang of which nobody has a state.
    pub resume: State,
}

/// Where the job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Job {
    /// Waits for workers.
    Queued,
    /// The first members load.
    Loading,
    /// A generation is open.
    Training,
    /// Ended well, with the adapter of this state.
    Succeeded(State),
}

/// A worker's seat in the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Its number, from 1 in each attempt.
    pub number: u8,
    /// The worker.
    pub worker: u8,
    /// Its process.
    pub process: u8,
    /// It has not ended.
    pub live: bool,
    /// It was expelled, and does not come back in this attempt.
    pub expelled: bool,
    /// It parted from the row's generation, and blames these workers: a bit each.
    pub parted: Option<u8>,
}

/// What the database holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// The job.
    pub job: Job,
    /// The generation that may write.
    pub fence: Fence,
    /// The attempt's places.
    pub places: Vec<Place>,
    /// Every generation that there was.
    pub generations: BTreeSet<Fence>,
    /// Checkpoints that count.
    pub checkpoints: BTreeSet<Checkpoint>,
}

/// How far a worker is in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Loaded, and waits for its first Begin.
    Ready,
    /// Compares states with the others, in this round.
    Entering(u8),
    /// Trains; whether its share of the next step is out.
    Training(bool),
    /// Has left the collective of its generation and waits for the next Begin.
    Parted,
    /// All leave: it writes a checkpoint first.
    Closing,
}

/// A worker's part in an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// The generation that it is in; generation 0 before the first.
    pub fence: Fence,
    /// Its place's number.
    pub place: u8,
    /// How far it is.
    pub stage: Stage,
    /// The whole state that it holds.
    pub whole: Option<State>,
    /// It has held a whole state in this place.
    pub had_whole: bool,
    /// Half of a state has come.
    pub half: bool,
    /// It was told to part at the next boundary.
    pub regroup: bool,
    /// Index and size in the generation before.
    pub before: Option<(u8, u8)>,
}

/// A worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Worker {
    /// Counts its restarts.
    pub process: u8,
    /// The process is there.
    pub alive: bool,
    /// Frozen or cut off.
    pub silent: bool,
    /// Was asked to leave.
    pub leaving: bool,
    /// Attempt and number of the last place that this process had: it never takes one twice, also where the database
    /// forgot that it had ended, or its own old words would count again.
    pub last: (u8, u8),
    /// Its part in an attempt.
    pub member: Option<Member>,
}

/// Said among members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Post {
    /// What I have, in this round.
    Hello { fence: Fence, index: u8, round: u8, whole: Option<State> },
    /// The first half of a state.
    Half { fence: Fence, state: State },
    /// The rest of it.
    Rest { fence: Fence, state: State },
    /// My part of a step's sum, with the control words.
    Share { fence: Fence, step: u8, index: u8, sum: u16, part: bool, leave: bool },
}

/// Said to the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Report {
    /// I have left the collective; I blame these workers.
    Parted { fence: Fence, worker: u8, place: u8, blames: u8 },
    /// A checkpoint is whole in the store.
    Written { checkpoint: Checkpoint, worker: u8, place: u8 },
    /// The final checkpoint is whole in the store.
    Succeeded { checkpoint: Checkpoint, worker: u8, place: u8 },
    /// I gave my place back.
    Released { attempt: u8, worker: u8, process: u8, place: u8 },
}

/// What should never have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flaw {
    /// A sum held a micro-batch twice, or not at all.
    WrongSum,
    /// A step was computed again while a member held it.
    Again,
    /// A checkpoint was read while a member held a state.
    CheckpointRead,
    /// Somebody of another generation changed the row.
    StaleWrite,
    /// A second terminal outcome.
    EndedTwice,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The database.
    pub row: Row,
    /// What the database is after a failover: without the last commit.
    pub replica: Option<Box<Row>>,
    /// The fleet.
    pub workers: Vec<Worker>,
    /// Every Begin ever said.
    pub begins: Vec<Generation>,
    /// Everything said among members.
    pub posts: BTreeSet<Post>,
    /// Everything said to the coordinator.
    pub reports: BTreeSet<Report>,
    /// Manifests.
    pub store: BTreeSet<Checkpoint>,
    /// Two workers that can't reach each other.
    pub cut: Option<(u8, u8)>,
    /// Faults that may still strike.
    pub faults: Faults,
    /// Ids of generations that were drawn.
    pub ids: u8,
    /// What went wrong.
    pub flaws: BTreeSet<Flaw>,
}

/// Something that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A fault strikes, or passes.
    Fault(Fault),
    /// The coordinator does something.
    Coordinator(Coordinates),
    /// A worker does something.
    Worker(u8, Works),
}

// === impl World ===

impl World {
    /// The beginning: a queued job, and idle workers.
    pub fn new(gangs: &Gangs) -> Self {
        let worker =
            Worker { process: 1, alive: true, silent: false, leaving: false, last: (0, 0), member: None };
        Self {
            row: Row {
                job: Job::Queued,
                fence: Fence::default(),
                places: Vec::new(),
                generations: BTreeSet::new(),
                checkpoints: BTreeSet::new(),
            },
            replica: None,
            workers: vec![worker; usize::from(gangs.workers)],
            begins: Vec::new(),
            posts: BTreeSet::new(),
            reports: BTreeSet::new(),
            store: BTreeSet::new(),
            cut: None,
            faults: gangs.faults,
            ids: 0,
            flaws: BTreeSet::new(),
        }
    }

    /// The job has ended, and the database can't forget it any more.
    pub fn is_over(&self) -> bool {
        matches!(self.row.job, Job::Succeeded(_)) && self.faults.failovers == 0
    }

    /// A worker.
    pub fn worker(&self, worker: u8) -> &Worker {
        &self.workers[usize::from(worker)]
    }

    /// A worker, to be changed.
    pub fn worker_mut(&mut self, worker: u8) -> &mut Worker {
        &mut self.workers[usize::from(worker)]
    }

    /// A worker's part in an attempt.
    pub fn member(&self, worker: u8) -> Option<&Member> {
        self.worker(worker).member.as_ref()
    }

    /// The generation of a fence, if one was ever opened.
    pub fn generation(&self, fence: Fence) -> Option<&Generation> {
        self.begins.iter().find(|generation| generation.fence == fence)
    }

    /// The row's live place that a worker holds, and knows of.
    pub fn live_place(&self, worker: u8) -> Option<&Place> {
        let member = self.member(worker)?;
        let attempt = self.row.fence.attempt == member.fence.attempt;
        self.row.live().find(|place| {
            attempt
                && (place.worker, place.process, place.number)
                    == (worker, self.worker(worker).process, member.place)
        })
    }

    /// The live place that a worker would take.
    pub fn new_place(&self, worker: u8) -> Option<&Place> {
        let it = self.worker(worker);
        let own = |place: &&Place| (place.worker, place.process) == (worker, it.process);
        let place = self.row.live().find(own)?;
        let fresh = it.member.is_none() && (self.row.fence.attempt, place.number) > it.last;
        (fresh && !it.leaving).then_some(place)
    }

    /// Whether two workers can reach each other, as far as they know.
    pub fn reaches(&self, a: u8, b: u8) -> bool {
        self.cut != Some((a.min(b), a.max(b)))
    }

    /// Notes what should not have happened.
    pub fn flaw(&mut self, flaw: Flaw, happened: bool) {
        if happened {
            self.flaws.insert(flaw);
        }
    }

    /// The database changes: what it was is what a failover goes back to.
    pub fn commit(&mut self, change: impl FnOnce(&mut Row)) {
        let before = self.row.clone();
        change(&mut self.row);
        if self.faults.failovers > 0 && before != self.row {
            self.replica = Some(Box::new(before));
        }
    }

    /// Drops what nobody can ever read: fewer worlds that differ in nothing that matters. A defect of fences, or a
    /// database that forgets, gives old words a meaning again, so there nothing is dropped.
    pub fn forget_what_cannot_matter(&mut self, gangs: &Gangs) {
        if self.faults.failovers == 0 {
            self.replica = None;
        }
        if gangs.mutant == Some(Mutant::FenceByNumber) || gangs.faults.failovers > 0 {
            return;
        }
        let row = self.row.fence;
        let fences: Vec<Fence> = self.workers.iter().filter_map(|it| it.member).map(|m| m.fence).collect();
        let matters = |of: Fence| {
            of == row || fences.iter().any(|own| own.attempt == of.attempt && own.generation <= of.generation)
        };
        self.posts.retain(|post| matters(post.fence()));
        self.begins.retain(|generation| matters(generation.fence));
    }
}

// === impl Row ===

impl Row {
    /// The places that have not ended.
    pub fn live(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(|place| place.live)
    }

    /// A worker's live place of this number.
    pub fn live_mut(&mut self, worker: u8, number: u8) -> Option<&mut Place> {
        self.places.iter_mut().find(|place| place.live && (place.worker, place.number) == (worker, number))
    }

    /// The newest whole checkpoint's state, or the beginning.
    pub fn newest(&self) -> State {
        self.checkpoints.iter().map(|checkpoint| checkpoint.state).max().unwrap_or_default()
    }
}

// === impl Fence ===

impl Fence {
    /// Whether a message under this fence counts for one who is under `own`.
    pub fn counts(self, own: Self, mutant: Option<Mutant>) -> bool {
        match mutant {
            Some(Mutant::FenceByNumber) => (self.attempt, self.generation) == (own.attempt, own.generation),
            _ => self == own,
        }
    }
}

// === impl Generation ===

impl Generation {
    /// A worker's index in it.
    pub fn index(&self, worker: u8, place: u8) -> Option<u8> {
        let index = self.members.iter().position(|member| *member == (worker, place))?;
        u8::try_from(index).ok()
    }

    /// Members.
    pub fn world_size(&self) -> u8 {
        u8::try_from(self.members.len()).unwrap_or(u8::MAX)
    }
}

// === impl Post ===

impl Post {
    /// The generation that it belongs to.
    pub fn fence(&self) -> Fence {
        match *self {
            Self::Hello { fence, .. }
            | Self::Half { fence, .. }
            | Self::Rest { fence, .. }
            | Self::Share { fence, .. } => fence,
        }
    }
}
