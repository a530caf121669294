//! What is said: between workers and coordinator, and among members.

use lorafleet_coordinator::{
    ids::{Fence, PlaceNo, RunId},
    membership::Suspicion,
};

use crate::training::{State, Sum};

/// A checkpoint's manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its path names the job, the step and the fence.
    pub job: usize,
    /// See `job`.
    pub fence: Fence,
    /// What it holds.
    pub state: State,
}

/// A member as Begin names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The process behind its address.
    pub process: usize,
    /// Its place.
    pub place: PlaceNo,
}

/// What a worker says to the coordinator.
#[derive(Clone, Debug)]
pub enum Up {
    /// I live, and run these.
    Heartbeat { running: Option<(RunId, Fence, bool)>, draining: bool },
    /// Base and data are loaded.
    Ready(RunId),
    /// Steps and their losses.
    Progress { run: RunId, fence: Fence, points: Vec<(u64, u64)> },
    /// A checkpoint is whole in the store.
    Written { run: RunId, manifest: Manifest },
    /// I have left the collective of that generation.
    Parted { run: RunId, fence: Fence, step: u64, suspicions: Vec<Suspicion> },
    /// My part is over; these points are still unacknowledged, and come first on the same stream.
    Finished { end: End, ended: Ended },
}

/// The end of a run.
#[derive(Clone, Debug)]
pub struct End {
    /// The run.
    pub run: RunId,
    /// The generation that it was in.
    pub fence: Fence,
    /// Points that were not acknowledged.
    pub points: Vec<(u64, u64)>,
}

/// How a worker's part ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The final checkpoint is whole.
    Succeeded(Manifest),
    /// Given back politely.
    Released,
    /// Told to stop.
    Stopped,
}

/// What the coordinator says to a worker.
#[derive(Clone, Debug)]
pub enum Down {
    /// Take a place.
    Assign(RunId),
    /// Enter this generation.
    Begin { run: RunId, fence: Fence, members: Vec<Peer>, resume: Vec<Manifest> },
    /// Part at the next boundary.
    Regroup { run: RunId, fence: Fence },
    /// Give your place back at the next boundary.
    Leave(RunId),
    /// Stop.
    Stop(RunId),
    /// Points up to this step are stored.
    ProgressAck { run: RunId, step: u64 },
    /// The checkpoint's row is stored.
    WrittenAck { run: RunId, step: u64 },
    /// The end is stored.
    FinishedAck(RunId),
    /// Your lease has ended: register anew.
    Unknown,
}

/// A member's part of a step, with the control words.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Its micro-batches' gradients.
    pub sum: Sum,
    /// All should part after this step.
    pub part: bool,
    /// It gives its place back after this step.
    pub leave: bool,
    /// How fast it is.
    pub speed: u32,
}

/// What members say to each other.
#[derive(Clone, Debug)]
pub struct Gossip {
    /// The generation.
    pub fence: Fence,
    /// The sender's index.
    pub from: usize,
    /// What.
    pub what: Words,
}

/// What members say to each other.
#[derive(Clone, Debug)]
pub enum Words {
    /// I am there; are you?
    Ping,
    /// I have not heard of that generation yet; wait for me.
    Later,
    /// What I hold, in this round.
    Hello { round: u8, whole: Option<State> },
    /// Half of a state.
    Half,
    /// The rest of it, and the points that nobody has acknowledged.
    Rest(State, Vec<(u64, u64)>),
    /// My part of a step, with the control words.
    Share { step: u64, share: Share },
    /// I leave this generation's collective: a good-bye.
    Left,
    /// My process is gone: its socket closed.
    Closed,
}
