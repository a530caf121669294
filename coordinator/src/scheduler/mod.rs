//! Which jobs start, grow and give workers back now, and why the others wait: a pure function of queue, gangs and fleet.
//!
//! The higher priority first, then first come, first served. A job starts with at least `workers.min` members at once
//! or not at all. A job that the whole fleet could not hold stands aside; one that only waits for busy workers keeps
//! its turn, so that smaller ones behind it cannot starve it.
//!
//! **Taking.** A job that keeps its turn takes what it lacks from running jobs of its own priority or a lower one: what
//! they hold above their `workers.min`, the lowest priority first, then from the gang that has most above its minimum,
//! its newest place first. It takes nothing unless that lets it start, and counts what is about to come free anyway.
//! What a running job got only a moment ago (`settle`) is not taken for an equal, so that a worker is not handed to and
//! fro while it loads; a higher priority need not wait.
//!
//! **Growing.** What is left once everyone who can start has its minimum goes to the starting jobs as room up to
//! `workers.max`, but only to jobs that have waited a moment (`gather`), so that two jobs submitted one after the other
//! share. Then idle workers join running jobs below `workers.max`: only when no job waits that the fleet could hold,
//! only workers that have been idle for a moment, and only of the gang's own kind, which keeps its bits the same.

mod free;
mod grow;
mod take;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, time::Duration};

use free::Free;

use crate::ids::{JobId, WorkerId};

/// A job that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// The job.
    pub job: JobId,
    /// The higher goes first.
    pub priority: i32,
    /// Members that it needs to start; at least 1.
    pub min: usize,
    /// Members that it can use; at least `min`.
    pub max: usize,
    /// How long the scheduler has known it.
    pub waited: Duration,
    /// The kind of worker that it ran on before, if any.
    pub kind: Option<String>,
}

/// A live worker that takes work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// The worker.
    pub worker: WorkerId,
    /// Its kind: a gang of one kind keeps the promise of equal bits over restarts.
    pub kind: String,
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
    /// The job's priority.
    pub priority: i32,
    /// Members that are left to it.
    pub min: usize,
    /// Members that it can use.
    pub max: usize,
    /// What it is about.
    pub standing: Standing,
    /// The kinds of its workers.
    pub kinds: Vec<String>,
    /// The places that it holds, those that still load included.
    pub seats: Vec<Seat>,
    /// Workers that get no place in this attempt for now.
    pub barred: BTreeSet<WorkerId>,
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
        /// Why, in one sentence.
        reason: String,
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
}

/// The times that a decision goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// A job that could use more than it needs waits this long for others to come; a worker is idle for this long before
    /// it joins a running job.
    pub gather: Duration,
    /// What a running job got less than this ago is not taken for a job of the same priority.
    pub settle: Duration,
}

/// Decides over `queue` (oldest first), the running `gangs` (oldest first) and the `fleet`: one decision a queued job,
/// by priority and then age, and after them what becomes of running ones.
pub fn schedule(queue: &[Queued], gangs: &[Gang], fleet: &[Worker], times: Times) -> Vec<Decision> {
    let mut queue: Vec<&Queued> = queue.iter().collect();
    queue.sort_by_key(|job| std::cmp::Reverse(job.priority));
    let mut free = Free::new(fleet);
    let mut supply = take::Supply::new(gangs, fleet, times.settle);
    let mut planned: Vec<Plan<'_>> = Vec::with_capacity(queue.len());
    let mut turn = Turn::Open;
    for job in queue {
        planned.push(plan(job, fleet, &mut free, &mut supply, &mut turn));
    }
    let mut grown = Vec::new();
    if matches!(turn, Turn::Open) && give_room(&mut planned, &mut free, times.gather) {
        grown = grow::grow(gangs, fleet, &mut free, times.gather);
    }
    let taken = supply.into_decisions();
    planned.into_iter().map(Plan::decision).chain(taken).chain(grown).collect()
}

/// Whether jobs further behind may still start.
#[derive(Clone, Copy)]
enum Turn {
    /// Nobody waits for busy workers so far.
    Open,
    /// Somebody does, for workers that are about to come free: jobs behind may ask for more of them, not start.
    Promised(usize),
    /// Somebody does, and nothing can be done about it.
    Blocked(usize),
}

fn plan<'a>(
    job: &'a Queued,
    fleet: &[Worker],
    free: &mut Free,
    supply: &mut take::Supply<'_>,
    turn: &mut Turn,
) -> Plan<'a> {
    if fleet.len() < job.min {
        return Plan::Wait(job, too_small(job.min, fleet.len()));
    }
    let earlier = match *turn {
        Turn::Open if free.workers() >= job.min => {
            return Plan::Start(job, free.take(job.min, job.kind.as_deref(), &[]));
        }
        Turn::Open => None,
        Turn::Promised(earlier) => Some(earlier),
        Turn::Blocked(earlier) => return Plan::Wait(job, waits_its_turn(earlier)),
    };
    let reserved = free.reserve(job.min);
    if let Some(given) = supply.cover(job, &reserved) {
        *turn = Turn::Promised(earlier.unwrap_or(job.min));
        let reason = match given {
            0 => format!("waits for {} to be free", workers(job.min)),
            n => format!("waits for {} that running jobs give back", workers(n)),
        };
        return Plan::Wait(job, reason);
    }
    *turn = Turn::Blocked(earlier.unwrap_or(job.min));
    Plan::Wait(
        job,
        match earlier {
            Some(earlier) => waits_its_turn(earlier),
            None => format!("waits for {} to be free", workers(job.min)),
        },
    )
}

/// A queued job's fate while the decision is made.
enum Plan<'a> {
    Start(&'a Queued, Vec<Place>),
    Wait(&'a Queued, String),
}

impl Plan<'_> {
    fn decision(self) -> Decision {
        match self {
            Self::Start(job, places) => Decision::Start { job: job.job, places },
            Self::Wait(job, reason) => Decision::Wait { job: job.job, reason },
        }
    }
}

/// Deals what is left to the starting jobs, one member in turn, so that equals get equal shares; a job that came only
/// a moment ago and could use what is left is held back until others had time to come. False: what is left is kept for
/// such a job.
fn give_room(planned: &mut [Plan<'_>], free: &mut Free, gather: Duration) -> bool {
    let mut grew = true;
    while grew {
        grew = false;
        for plan in planned.iter_mut() {
            let Plan::Start(job, places) = plan else { continue };
            if places.len() >= job.max || !free.has_other_than(places) {
                continue;
            }
            if job.waited < gather {
                free.put_back(places);
                *plan = Plan::Wait(job, "starts in a moment".to_owned());
                // What it left may be wanted by jobs after it in the next round; not now, for it is next in line.
                return false;
            }
            places.extend(free.take(1, job.kind.as_deref(), places));
            grew = true;
        }
    }
    true
}

fn workers(n: usize) -> String {
    if n == 1 { "a worker".to_owned() } else { format!("{n} workers") }
}

fn too_small(min: usize, fleet: usize) -> String {
    let has = match fleet {
        0 => "no workers".to_owned(),
        n => n.to_string(),
    };
    format!("needs {}, the fleet has {has}", workers(min))
}

fn waits_its_turn(earlier: usize) -> String {
    format!("waits its turn: an earlier job waits for {}", workers(earlier))
}
