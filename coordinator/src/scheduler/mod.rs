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
mod labels;
mod queue;
mod reason;
mod take;
#[cfg(test)]
mod tests;
mod types;

use std::time::Duration;

use free::Free;
pub use labels::{DEVICE, Labels, labels_of};
pub use queue::Queue;
pub use reason::{Reason, Words};
pub use types::{Decision, Gang, Place, Queued, Seat, Standing, Tenant, Times, Worker};

/// Decides over `queue` (oldest first), the running `gangs` (oldest first) and the `fleet`: one decision a queued job,
/// by priority and then age, and after them what becomes of running ones.
pub fn schedule(
    queue: &Queue,
    gangs: &[Gang],
    fleet: &[Worker],
    _tenants: &[Tenant],
    times: Times,
) -> Vec<Decision> {
    let mut queue: Vec<&Queued> = queue.jobs().iter().collect();
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
    let planned = planned.into_iter().enumerate().map(|(i, plan)| plan.decision(i + 1));
    planned.chain(taken).chain(grown).collect()
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
        let selector = job.selector.clone();
        return Plan::Wait(job, Reason::TooSmall { needs: job.min, has: fleet.len(), selector });
    }
    let earlier = match *turn {
        Turn::Open if free.workers() >= job.min => {
            return Plan::Start(job, free.take(job.min, job.kind.as_deref(), &[]));
        }
        Turn::Open => None,
        Turn::Promised(earlier) => Some(earlier),
        Turn::Blocked(earlier) => return Plan::Wait(job, Reason::Turn { earlier }),
    };
    let reserved = free.reserve(job.min);
    if let Some(given) = supply.cover(job, &reserved) {
        *turn = Turn::Promised(earlier.unwrap_or(job.min));
        let reason = match given {
            0 => busy(job),
            workers => Reason::GivenBack { workers },
        };
        return Plan::Wait(job, reason);
    }
    *turn = Turn::Blocked(earlier.unwrap_or(job.min));
    Plan::Wait(
        job,
        match earlier {
            Some(earlier) => Reason::Turn { earlier },
            None => busy(job),
        },
    )
}

/// A queued job's fate while the decision is made.
enum Plan<'a> {
    Start(&'a Queued, Vec<Place>),
    Wait(&'a Queued, Reason),
}

impl Plan<'_> {
    fn decision(self, position: usize) -> Decision {
        match self {
            Self::Start(job, places) => Decision::Start { job: job.job, places },
            Self::Wait(job, reason) => Decision::Wait { job: job.job, reason, position, estimate: None },
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
                *plan = Plan::Wait(job, Reason::Moment);
                // What it left may be wanted by jobs after it in the next round; not now, for it is next in line.
                return false;
            }
            places.extend(free.take(1, job.kind.as_deref(), places));
            grew = true;
        }
    }
    true
}

fn busy(job: &Queued) -> Reason {
    Reason::Busy { needs: job.min, selector: job.selector.clone() }
}
