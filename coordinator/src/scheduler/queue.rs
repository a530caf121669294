//! The jobs that wait, in groups that differ in nothing that matters for their place: a decision looks at the first of
//! each group.

use std::{sync::Arc, time::Duration};

use super::{Labels, Queued, words::QuickMap};
use crate::ids::{JobId, TenantId};

/// The jobs that wait.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    groups: Vec<Group>,
    by_key: QuickMap<Key, u32>,
    len: u32,
}

/// Jobs of one tenant, priority and shape, in the order of their coming.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) tenant: TenantId,
    pub(super) priority: i32,
    pub(super) shape: Shape,
    pub(super) jobs: Vec<Waiting>,
}

/// What a job needs of the fleet.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) min: usize,
    pub(super) selector: Arc<Labels>,
}

/// What jobs of a group differ in: nothing that says whether one can start, only where it would best.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) job: JobId,
    /// Its number in the queue.
    pub(super) number: u32,
    pub(super) max: usize,
    pub(super) waited: Duration,
    pub(super) age: Duration,
    pub(super) run_estimate: Option<Duration>,
    pub(super) kind: Option<Arc<str>>,
    pub(super) base: Option<Arc<str>>,
}

/// What a group's jobs have in common. Selectors are compared by address: equal ones at different addresses only make
/// more groups than are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    tenant: (u64, u64),
    priority: u32,
    min: usize,
    selector: usize,
    /// Estimates within a factor of four are alike.
    minutes: u32,
}

impl Queue {
    /// Adds a job, the oldest first.
    pub fn push(&mut self, job: Queued) {
        let next = u32::try_from(self.groups.len()).unwrap_or(u32::MAX);
        let group = *self.by_key.entry(Key::of(&job)).or_insert(next);
        let Queued { job, tenant, priority, min, max, waited, age, kind, selector, base, run_estimate } = job;
        let waiting = Waiting { job, number: self.len, max, waited, age, run_estimate, kind, base };
        self.len += 1;
        if let Some(group) = self.groups.get_mut(group as usize) {
            group.jobs.push(waiting);
            return;
        }
        self.groups.push(Group { tenant, priority, shape: Shape { min, selector }, jobs: vec![waiting] });
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }
}

impl FromIterator<Queued> for Queue {
    fn from_iter<I: IntoIterator<Item = Queued>>(jobs: I) -> Self {
        let mut queue = Self::default();
        jobs.into_iter().for_each(|job| queue.push(job));
        queue
    }
}

impl From<Vec<Queued>> for Queue {
    fn from(jobs: Vec<Queued>) -> Self {
        jobs.into_iter().collect()
    }
}

impl Key {
    fn of(job: &Queued) -> Self {
        let minutes = job.run_estimate.map_or(u32::MAX, |run| (run.as_secs() / 60 + 1).ilog2() / 2);
        Self {
            tenant: job.tenant.0.as_u64_pair(),
            priority: job.priority.cast_unsigned(),
            min: job.min,
            selector: Arc::as_ptr(&job.selector).addr(),
            minutes,
        }
    }
}
