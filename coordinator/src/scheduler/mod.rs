//! Which jobs start, grow, give workers back and go back to the queue now, and why the others wait: a pure function of
//! queue, gangs, fleet and tenants. docs/scheduling.md tells it to users.
//!
//! **Order.** The higher priority first, raised by waiting; then the tenant that has had least of its share; then the
//! older job ([`order`]). A job starts with at least `workers.min` members at once or not at all. One that the whole
//! fleet could not hold, or whose tenant may run no more, stands aside; one that only waits for busy workers gets a
//! reservation, and those that overtake it cannot delay it ([`reserve`]).
//!
//! **Placing.** On workers that match the selector: of the kind that the job ran on before, else all of one kind, or at
//! least of one device; among those on workers that hold the base already ([`free`]).
//!
//! **Taking.** A job that is next and lacks workers takes from running jobs of its own priority or a lower one what they
//! hold above their `workers.min`, the lowest priority first, then from the gang that has most above its minimum, its
//! newest place first. If that is not enough, jobs of a lower priority go back to the queue, no more than are needed.
//! It takes nothing unless that lets it start, and counts what is about to come free anyway. What a running job got only
//! a moment ago (`settle`) is not taken for an equal, so that a worker is not handed to and fro while it loads; a higher
//! priority need not wait ([`take`]).
//!
//! **Growing.** What is left once everyone who can start has its minimum goes to the starting jobs as room up to
//! `workers.max`, but only to jobs that have waited a moment (`gather`), so that two jobs submitted one after the other
//! share. Then idle workers join running jobs below `workers.max`: only workers that no waiting job could use, that have
//! been idle for a moment, and that are of the gang's own kind, which keeps its bits the same ([`grow`]).
//!
//! **Cost.** A queue is kept as groups of like jobs, a fleet as classes of like workers, and a turn looks at the first of
//! a group and the numbers of a class: a decision over 100,000 jobs and 10,000 workers takes milliseconds.

mod free;
mod grow;
mod labels;
mod line;
mod order;
mod queue;
mod reason;
mod reserve;
mod round;
mod take;
#[cfg(test)]
mod tests;
mod types;
mod words;

pub use labels::{DEVICE, Labels, labels_of};
pub use queue::Queue;
pub use reason::{Reason, Words};
pub use types::{Decision, Gang, Place, Queued, Seat, Standing, Tenant, Times, Worker};

/// Decides over the `queue`, the running `gangs` (oldest first), the `fleet` and its `tenants`: what starts, in order of
/// turn; then what waits, by place in the queue; then what becomes of running jobs.
pub fn schedule(
    queue: &Queue,
    gangs: &[Gang],
    fleet: &[Worker],
    tenants: &[Tenant],
    times: Times,
) -> Vec<Decision> {
    round::Round::new(queue, gangs, fleet, tenants, times).decide()
}
