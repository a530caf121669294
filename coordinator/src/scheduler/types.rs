//! What a decision goes by, and what it says.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{Labels, Reason};
use crate::ids::{JobId, TenantId, WorkerId};

/// A job that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// The job.
    pub job: JobId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The higher goes first.
    pub priority: i32,
    /// Members that it needs to start; at least 1.
    pub min: usize,
    /// Members that it can use; at least `min`.
    pub max: usize,
    /// How long the scheduler has known it.
    pub waited: Duration,
    /// How long it has waited since it was submitted, its runs left out: who waited longer goes first.
    pub age: Duration,
    /// The kind of worker that it ran on before, if any.
    pub kind: Option<Arc<str>>,
    /// The labels that its workers must have.
    pub selector: Arc<Labels>,
    /// The digest of its base; none where it is not known.
    pub base: Option<Arc<str>>,
    /// How long it will run on `min` workers, where that is known.
    pub run_estimate: Option<Duration>,
}

/// A live worker that takes work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// The worker.
    pub worker: WorkerId,
    /// Its kind: a gang of one kind keeps the promise of equal bits over restarts.
    pub kind: Arc<str>,
    /// Its device: `cpu` or the GPU's model.
    pub device: Arc<str>,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// The digests of the bases that it holds.
    pub bases: Vec<Arc<str>>,
    /// Its free slots.
    pub free: Vec<u32>,
    /// How long the scheduler has known it to have a free slot.
    pub idle: Duration,
}

/// A job that holds places, whether or not it still trains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gang {
    /// The job.
    pub job: JobId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The job's priority.
    pub priority: i32,
    /// Members that are left to it.
    pub min: usize,
    /// Members that it can use.
    pub max: usize,
    /// What it is about.
    pub standing: Standing,
    /// The kinds of its workers.
    pub kinds: Vec<Arc<str>>,
    /// The labels that its workers must have.
    pub selector: Arc<Labels>,
    /// The digest of its base; none where it is not known.
    pub base: Option<Arc<str>>,
    /// The places that it holds, those that still load included.
    pub seats: Vec<Seat>,
    /// Workers that get no place in this attempt for now.
    pub barred: BTreeSet<WorkerId>,
    /// How long the job had waited when it started.
    pub age: Duration,
    /// How long it still runs, where that is known.
    pub left: Option<Duration>,
    /// It may be sent back to the queue for a job of higher priority.
    pub preemptible: bool,
}

/// What a gang is about, as far as it concerns who works for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its first members load base and data: one more would only be waited for.
    Loading,
    /// It trains.
    Training,
    /// It is about to give all its places back.
    Ending,
}

/// A place that a gang holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its number in the attempt; the newest has the highest.
    pub place: u32,
    /// Who holds it.
    pub worker: WorkerId,
    /// It was asked to leave.
    pub leaving: bool,
    /// How long ago it was given to the running gang; nothing for those that it started with.
    pub joined: Option<Duration>,
}

/// Who jobs belong to; one that is not named has weight 1, has used nothing, and no limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tenant {
    /// The tenant.
    pub id: TenantId,
    /// Its share of the fleet, beside the others'; above 0.
    pub weight: f64,
    /// Worker-seconds that it used, those of long ago counting less.
    pub used: f64,
    /// Workers that it may run at once.
    pub max_workers: Option<usize>,
}

/// A slot of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The worker.
    pub worker: WorkerId,
    /// The slot on it.
    pub slot: u32,
}

/// What to do about a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Start it, members in order of their index.
    Start {
        /// The job.
        job: JobId,
        /// One place a member, each on another worker.
        places: Vec<Place>,
    },
    /// Leave it queued.
    Wait {
        /// The job.
        job: JobId,
        /// Why.
        reason: Reason,
        /// Its place in the queue, from 1; far behind, only about.
        position: usize,
        /// When it may start, from now, where that is known.
        estimate: Option<Duration>,
    },
    /// Let workers join it while it runs.
    Grow {
        /// The job.
        job: JobId,
        /// One place a worker.
        places: Vec<Place>,
    },
    /// Ask it to give places back.
    Shrink {
        /// The job.
        job: JobId,
        /// The places' numbers, the newest first.
        places: Vec<u32>,
        /// The job that needs their workers.
        for_job: JobId,
    },
    /// Send it back to the queue: all of it, with a checkpoint.
    Preempt {
        /// The job.
        job: JobId,
        /// The job of higher priority that needs its workers.
        for_job: JobId,
    },
}

/// The times that a decision goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// A job that could use more than it needs waits this long for others to come; a worker is idle for this long before
    /// it joins a running job.
    pub gather: Duration,
    /// What a running job got less than this ago is not taken for a job of the same priority.
    pub settle: Duration,
    /// Waiting for this long raises a job by a hundred points of priority, one class, so that nothing starves.
    pub ageing: Duration,
    /// A worker that runs or is given counts as if its tenant had used it for this long already, so that one decision
    /// does not give everything to whoever has used least.
    pub charge: Duration,
}

impl Times {
    /// The times that a fleet goes by, where jobs that could use more than they need wait for `gather`.
    pub fn usual(gather: Duration) -> Self {
        Self {
            gather,
            settle: Duration::from_secs(10),
            ageing: Duration::from_secs(4 * 3600),
            charge: Duration::from_secs(600),
        }
    }
}

impl Tenant {
    /// What a tenant used counts half after this time: a share is a share of days, not of ever.
    pub const HALF_LIFE: Duration = Duration::from_secs(24 * 3600);

    /// One of whom nothing is known.
    pub fn unknown(id: TenantId) -> Self {
        Self { id, weight: 1.0, used: 0.0, max_workers: None }
    }
}
