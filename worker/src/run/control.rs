//! What reaches a run from outside while it trains: begin, stop, drain; and what it shows: its last step.

use std::{
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use lorafleet_proto::v1 as pb;

use crate::collective::Abort;

/// The line between a run on its own thread and the agent.
#[derive(Default)]
pub struct RunControl {
    state: Mutex<State>,
    changed: Condvar,
    draining: AtomicBool,
    step: AtomicU64,
    abort: Abort,
}

#[derive(Default)]
struct State {
    begin: Option<pb::Begin>,
    stop: Option<pb::StopReason>,
}

/// What ends a wait for [`RunControl::wait_begin`] without a beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// The coordinator said stop.
    Stop,
    /// The worker takes its leave.
    Drain,
    /// The deadline passed.
    Deadline,
}

impl RunControl {
    /// All members are ready. Repeated ones are ignored.
    pub fn begin(&self, begin: pb::Begin) {
        self.lock().begin.get_or_insert(begin);
        self.changed.notify_all();
    }

    /// The run ends now: an operation with peers under way is aborted.
    pub fn stop(&self, reason: pb::StopReason) {
        self.lock().stop.get_or_insert(reason);
        self.changed.notify_all();
        self.abort.abort(&format!("told to stop: {}", why(reason)));
    }

    /// The run ends at the next step boundary, with its whole gang.
    pub fn drain(&self) {
        {
            let _state = self.lock();
            self.draining.store(true, Ordering::SeqCst);
        }
        self.changed.notify_all();
    }

    /// The last finished step.
    pub fn step(&self) -> u64 {
        self.step.load(Ordering::Relaxed)
    }

    /// Ends the run's collective, from any thread.
    pub fn abort_handle(&self) -> Abort {
        self.abort.clone()
    }

    pub(crate) fn set_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// Whether the run was told to stop.
    pub fn stopped(&self) -> Option<pb::StopReason> {
        self.lock().stop
    }

    /// Whether the worker takes its leave.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Waits for the beginning; `may_drain`: the worker's leave ends the wait.
    pub(crate) fn wait_begin(&self, patience: Duration, may_drain: bool) -> Result<pb::Begin, Interrupt> {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            if state.stop.is_some() {
                return Err(Interrupt::Stop);
            }
            if let Some(begin) = &state.begin {
                return Ok(begin.clone());
            }
            if may_drain && self.draining() {
                return Err(Interrupt::Drain);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Interrupt::Deadline);
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the run is stopped, at most this long; true when it was.
    pub(crate) fn wait_stop(&self, patience: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), patience, |state| state.stop.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.stop.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves nothing half-written here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reason in words.
fn why(reason: pb::StopReason) -> &'static str {
    match reason {
        pb::StopReason::Cancelled => "the job was cancelled",
        pb::StopReason::Stale => "its fence is stale",
        pb::StopReason::GangLost => "the gang has lost a member",
        pb::StopReason::Expelled => "the gang goes on without it",
        pb::StopReason::Unspecified => "no reason given",
    }
}
