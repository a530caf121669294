//! The jobs that wait.

use super::Queued;

/// The jobs that wait, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    jobs: Vec<Queued>,
}

impl Queue {
    /// These jobs, the oldest first.
    pub fn new(jobs: Vec<Queued>) -> Self {
        Self { jobs }
    }

    /// Them.
    pub fn jobs(&self) -> &[Queued] {
        &self.jobs
    }
}

impl From<Vec<Queued>> for Queue {
    fn from(jobs: Vec<Queued>) -> Self {
        Self::new(jobs)
    }
}
