//! The protocol of generations and fences as a model, small enough that every order of events can be tried.
//!
//! What is said is never unsaid here: a message stays where everybody may read it, and may be read late, out of order,
//! or never. That is how loss, delay and the late words of old generations come into the model without a network.
//! A worker that is `silent` is frozen or cut off: others may take it for dead, and it may go on all the same.
//!
//! A step's work is a sum in which each micro-batch is one hexadecimal digit, so that a lost or doubled one can be
//! seen; a state is the number of its step and a digest that is 0 as long as every sum was right.

mod coordinator;
mod faults;
mod invariants;
mod worker;
mod world;

use stateright::{Model, Property};

pub use invariants::{
    AGAIN, ENDS_ONCE, EXACT, FENCED, INVARIANTS, NEVER_STUCK, ONCE, READ, ROWS, SAME, WHOLE,
};
pub use world::{
    Action, Checkpoint, Fence, Flaw, Generation, Job, Member, Place, Post, Report, Row, Stage, State, Worker,
    World,
};

/// Micro-batches of a step.
pub const MICRO_BATCHES: u8 = 3;

/// The sum of a step in which each micro-batch is once.
pub const WHOLE_SUM: u16 = 0x111;

/// A small fleet with one job, and what may go wrong in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gangs {
    /// Workers.
    pub workers: u8,
    /// Workers that the first attempt starts on; the others may come later.
    pub starters: u8,
    /// Steps of the job.
    pub steps: u8,
    /// Whether a checkpoint may be written after every step; the final one is written anyway.
    pub checkpoints: bool,
    /// How often each fault may strike.
    pub faults: Faults,
    /// The only worker that may fall silent, if not all may.
    pub victim: Option<u8>,
    /// A defect of the protocol that the invariants must find.
    pub mutant: Option<Mutant>,
}

/// How often each fault may strike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Faults {
    /// A worker dies at once, and may come back as a new process.
    pub crashes: u8,
    /// A worker freezes, or is cut off from everybody, and may come back.
    pub silences: u8,
    /// Two workers can't reach each other any more, for good.
    pub cuts: u8,
    /// The database forgets its last commit.
    pub failovers: u8,
    /// A worker is asked to leave politely.
    pub leaves: u8,
}

/// A defect of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Fences are compared by attempt and generation, not by the random id.
    FenceByNumber,
    /// Micro-batches are dealt by the place in the generation before.
    DealByOldMembership,
    /// A state that is received replaces the own one piece by piece.
    BroadcastInPlace,
    /// A generation is opened as soon as one member has parted; the others count as gone.
    OpenEarly,
}

impl Model for Gangs {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.is_over() {
            return;
        }
        self.faults_possible(world, actions);
        self.coordinator_may(world, actions);
        for worker in 0..self.workers {
            self.worker_may(world, worker, actions);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Fault(fault) => self.strike(&mut next, fault),
            Action::Coordinator(act) => self.coordinate(&mut next, act),
            Action::Worker(worker, act) => self.work(&mut next, worker, act),
        }
        next.forget_what_cannot_matter(self);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        invariants::properties()
    }
}
