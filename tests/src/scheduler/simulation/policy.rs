//! Who decides which jobs start: the scheduler, or one of the two simple rules that it is held against.

use std::{collections::BTreeSet, time::Duration};

use lorafleet_coordinator::scheduler::{Decision, Queue, Queued, Tenant, Times, schedule};

use super::{
    load::{DEVICES, Job, tenant, tenant_id},
    world::{World, job_id, job_number, worker_numbers},
};

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The oldest first; while it does not fit, nobody starts.
    Fifo,
    /// The highest priority first, then the oldest; while it does not fit, nobody starts.
    Priority,
    /// The coordinator's scheduler.
    Lorafleet,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Fifo, Self::Priority, Self::Lorafleet];

    /// Its name in figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fifo => "fifo",
            Self::Priority => "priority",
            Self::Lorafleet => "lorafleet",
        }
    }

    /// What jobs wait by, of their priority.
    pub fn key(self) -> fn(i32) -> i32 {
        match self {
            Self::Fifo | Self::Lorafleet => |_| 0,
            Self::Priority => |priority| -priority,
        }
    }

    /// Decides, and has it carried out.
    pub fn decide(self, world: &mut World<'_>, times: Times) {
        match self {
            Self::Fifo | Self::Priority => in_line(world),
            Self::Lorafleet => scheduled(world, times),
        }
    }
}

fn in_line(world: &mut World<'_>) {
    while let Some((_, first)) = world.queue.first().copied() {
        let Some(workers) = fitting(&world.load.jobs[first], &world.free) else { break };
        world.start(first, &workers);
    }
}

/// Free workers for a job: of one device where there are enough of it.
fn fitting(job: &Job, free: &[BTreeSet<usize>]) -> Option<Vec<usize>> {
    let mut devices: Vec<usize> = job.device.map_or((0..DEVICES.len()).collect(), |device| vec![device]);
    devices.sort_by_key(|device| free[*device].len());
    if let Some(enough) = devices.iter().find(|device| free[**device].len() >= job.size) {
        devices = vec![*enough];
    }
    let workers: Vec<usize> = devices.iter().flat_map(|d| free[*d].iter().copied()).take(job.size).collect();
    (workers.len() == job.size).then_some(workers)
}

fn scheduled(world: &mut World<'_>, times: Times) {
    if world.queue.is_empty() {
        return;
    }
    world.look();
    let queue: Queue = world.queue.iter().map(|(_, job)| queued(world, *job)).collect();
    let of_tenant = |(n, (weight, used)): (usize, (&f64, &f64))| tenant(n, *weight, *used);
    let tenants: Vec<Tenant> =
        world.load.weights.iter().zip(&world.used).enumerate().map(of_tenant).collect();
    for decision in schedule(&queue, &world.gangs, &world.fleet, &tenants, times) {
        match decision {
            Decision::Start { job, places } => world.start(job_number(job), &worker_numbers(&places)),
            Decision::Preempt { job, .. } => world.preempt(job_number(job)),
            // Its jobs need as many workers as they can use: none grows or shrinks.
            Decision::Wait { .. } | Decision::Grow { .. } | Decision::Shrink { .. } => {}
        }
    }
}

fn queued(world: &World<'_>, job: usize) -> Queued {
    let known = &world.load.jobs[job];
    Queued {
        job: job_id(job),
        tenant: tenant_id(known.tenant),
        priority: known.priority,
        min: known.size,
        max: known.size,
        waited: Duration::from_secs(60),
        age: Duration::from_secs_f64(world.now - known.submit),
        kind: None,
        selector: world.load.selector(known),
        base: None,
        run_estimate: known.estimate.map(Duration::from_secs_f64),
    }
}
