//! The rows: cheap to copy, so that a failover can go back to what they were.

use std::collections::BTreeMap;

use lorafleet_coordinator::{
    ids::{Fence, JobId, PlaceNo, RunId},
    job::{JobState, MemberOutcome, Phase},
    membership::Suspicion,
};
use uuid::Uuid;

use crate::messages::Manifest;

/// Everything that Postgres holds.
#[derive(Clone, Debug, Default)]
pub struct Database {
    /// Jobs, oldest first.
    pub jobs: Vec<Job>,
    /// Leases by process.
    pub leases: BTreeMap<usize, Lease>,
}

/// A process's lease.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// The worker's name.
    pub name: usize,
    /// Raised by heartbeats.
    pub counter: i64,
    /// It has not ended.
    pub live: bool,
    /// It takes no new work.
    pub draining: bool,
}

/// A job, with its live or last attempt.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// The higher goes first.
    pub priority: i32,
    /// Members that it needs to start.
    pub min: usize,
    /// Members that it can use.
    pub max: usize,
    /// Where it stands.
    pub state: JobState,
    /// How far the attempt is.
    pub phase: Phase,
    /// The generation that may write.
    pub fence: Fence,
    /// The current generation by index.
    pub members: Vec<PlaceNo>,
    /// Every generation that there was, with its members.
    pub generations: Vec<(Fence, Vec<PlaceNo>)>,
    /// The attempt's places.
    pub places: Vec<Place>,
    /// Checkpoints that count.
    pub checkpoints: Vec<Manifest>,
    /// Losses by step.
    pub points: BTreeMap<u64, u64>,
    /// The highest step that was reported.
    pub step: u64,
    /// The same when the attempt began.
    pub steps_before: u64,
    /// The step that the generation began after.
    pub start_step: u64,
    /// Attempts in a row that were lost.
    pub failures: u32,
    /// What it ended with.
    pub result: Option<Manifest>,
}

/// A place in the attempt.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its number.
    pub place: PlaceNo,
    /// Its holder's process.
    pub process: usize,
    /// Loaded.
    pub ready: bool,
    /// What it said when it left the current generation's collective.
    pub parted: Option<(u64, Vec<Suspicion>)>,
    /// How it ended.
    pub outcome: Option<MemberOutcome>,
    /// It was asked to give itself back.
    pub leaving: bool,
}

impl Job {
    /// A job that waits.
    pub fn new(number: usize, priority: i32, min: usize, max: usize) -> Self {
        Self {
            id: JobId(Uuid::from_u128(1000 + number as u128)),
            priority,
            min,
            max,
            state: JobState::Queued,
            phase: Phase::Ended,
            fence: Fence { attempt: 0, generation: 0, generation_id: String::new() },
            members: Vec::new(),
            generations: Vec::new(),
            places: Vec::new(),
            checkpoints: Vec::new(),
            points: BTreeMap::new(),
            step: 0,
            steps_before: 0,
            start_step: 0,
            failures: 0,
            result: None,
        }
    }

    /// An attempt is live.
    pub fn is_running(&self) -> bool {
        self.state == JobState::Running
    }

    /// A place's name.
    pub fn run(&self, place: PlaceNo) -> RunId {
        RunId { job: self.id, attempt: self.fence.attempt, place }
    }

    /// A place by its number.
    pub fn place(&mut self, place: PlaceNo) -> Option<&mut Place> {
        self.places.iter_mut().find(|p| p.place == place)
    }

    /// The live place that a process holds, if it is this one.
    pub fn held(&mut self, process: usize, run: RunId) -> Option<&mut Place> {
        let current = self.is_running() && run.attempt == self.fence.attempt && run.job == self.id;
        self.places
            .iter_mut()
            .find(|p| current && p.place == run.place && p.process == process && p.outcome.is_none())
    }

    /// A place's index in the current generation.
    pub fn index(&self, place: PlaceNo) -> Option<usize> {
        self.members.iter().position(|member| *member == place)
    }

    /// Gives a process a new place.
    pub fn seat(&mut self, process: usize) {
        let last = self.places.iter().map(|p| p.place.0).max().unwrap_or_default();
        self.places.push(Place {
            place: PlaceNo(last + 1),
            process,
            ready: false,
            parted: None,
            outcome: None,
            leaving: false,
        });
    }
}
