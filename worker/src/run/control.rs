//! What reaches a run from outside while it trains: begin, regroup, leave, stop; and what it shows: its last step.

use std::{
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use lorafleet_proto::v1 as pb;

use crate::collective::Abort;

/// How often a wait looks at the time.
const LOOK: Duration = Duration::from_millis(200);
/// A worker that is to leave waits no longer than this for a coordinator that is away.
const LEAVING_ALONE: Duration = Duration::from_secs(10);

/// The line between a run on its own thread and the agent. It lives as long as the place: through all generations.
pub struct RunControl {
    state: Mutex<State>,
    changed: Condvar,
    /// The last finished step.
    step: AtomicU64,
    leaving: AtomicBool,
}

struct State {
    /// The newest beginning.
    begin: Option<pb::Begin>,
    /// The generation that is to part at its next boundary.
    regroup: Option<pb::Fence>,
    stop: Option<pb::StopReason>,
    /// Without the coordinator since then; none while it is there.
    alone_since: Option<Instant>,
    /// The generation that the run is in, or was in last; generation 0 before the first.
    fence: pb::Fence,
    /// Its end has been told, or need not be.
    parted: bool,
    /// Its collective does not stand yet.
    joining: bool,
    /// Ends its collective.
    abort: Abort,
}

/// What ends a wait for [`RunControl::wait_begin`] without a beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// The coordinator said stop.
    Stop,
    /// The place is given back before its first generation.
    Leave,
    /// The coordinator has been away for too long.
    Alone,
}

impl RunControl {
    /// The line of a place; `fence` is the assignment's, of generation 0.
    pub fn new(fence: pb::Fence) -> Self {
        Self {
            state: Mutex::new(State {
                begin: None,
                regroup: None,
                stop: None,
                alone_since: None,
                fence,
                parted: false,
                joining: false,
                abort: Abort::new(),
            }),
            changed: Condvar::new(),
            step: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
        }
    }

    // What the agent says.

    /// A generation opens. One that is not newer than those before is ignored; a newer one ends the collective of the
    /// present generation.
    pub fn begin(&self, begin: pb::Begin) {
        let generation = generation(&begin);
        let old = {
            let mut state = self.lock();
            let known = state.begin.as_ref().map_or(0, self::generation).max(state.fence.generation);
            if generation <= known {
                return;
            }
            state.begin = Some(begin);
            // Nothing is said of the end of a generation that has a successor.
            state.parted = true;
            state.abort.clone()
        };
        self.changed.notify_all();
        old.abort(&format!("generation {generation} begins"));
    }

    /// That generation is to part at its next step boundary; at once while it is being joined, for it may wait for a
    /// peer that never comes.
    pub fn regroup(&self, fence: pb::Fence) {
        let joining = {
            let mut state = self.lock();
            let joining = state.joining && state.fence == fence;
            state.regroup = Some(fence);
            joining.then(|| state.abort.clone())
        };
        if let Some(abort) = joining {
            abort.abort("told to regroup while its members were still joining");
        }
    }

    /// The place is given back: at the next step boundary, or at once while it loads.
    pub fn leave(&self) {
        {
            // Under the lock, so that a wait cannot miss it.
            let _state = self.lock();
            self.leaving.store(true, Ordering::SeqCst);
        }
        self.changed.notify_all();
    }

    /// The run ends now: an operation with peers under way is aborted.
    pub fn stop(&self, reason: pb::StopReason) {
        let abort = {
            let mut state = self.lock();
            state.stop.get_or_insert(reason);
            // Its end says it all.
            state.parted = true;
            state.abort.clone()
        };
        self.changed.notify_all();
        abort.abort(&format!("told to stop: {}", why(reason)));
    }

    /// Whether there is a line to the coordinator.
    pub fn set_connected(&self, connected: bool) {
        let mut state = self.lock();
        match connected {
            true => state.alone_since = None,
            false => drop(state.alone_since.get_or_insert_with(Instant::now)),
        }
    }

    // What it shows.

    /// The last finished step.
    pub fn step(&self) -> u64 {
        self.step.load(Ordering::SeqCst)
    }

    /// The fence of the generation that the run is in, or was in last; of generation 0 before the first.
    pub fn fence(&self) -> pb::Fence {
        self.lock().fence.clone()
    }

    /// Whether the run was told to stop.
    pub fn stopped(&self) -> Option<pb::StopReason> {
        self.lock().stop
    }

    // What the run does.

    /// Whether the place is to be given back.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    /// Whether the present generation is to part at its next boundary.
    pub(crate) fn is_regrouping(&self) -> bool {
        let state = self.lock();
        state.regroup.as_ref() == Some(&state.fence)
    }

    pub(crate) fn set_step(&self, step: u64) {
        self.step.store(step, Ordering::SeqCst);
    }

    /// Enters a generation: a fresh handle that ends its collective, ended already where the run is told to stop or a
    /// newer generation is known.
    pub(crate) fn arm(&self, fence: pb::Fence) -> Abort {
        let abort = Abort::new();
        let ended = {
            let mut state = self.lock();
            state.abort = abort.clone();
            state.joining = true;
            let newer = state.begin.as_ref().map(generation).filter(|newest| *newest > fence.generation);
            state.fence = fence;
            let reason = match (state.stop, newer) {
                (Some(reason), _) => Some(format!("told to stop: {}", why(reason))),
                (None, newer) => newer.map(|newer| format!("generation {newer} begins")),
            };
            state.parted = reason.is_some();
            reason
        };
        if let Some(reason) = ended {
            abort.abort(&reason);
        }
        abort
    }

    /// The collective of that generation stands.
    pub(crate) fn joined(&self, fence: &pb::Fence) {
        let mut state = self.lock();
        if state.fence == *fence {
            state.joining = false;
        }
    }

    /// Claims the end of that generation: true for the first who does, and who therefore says how it ended.
    pub(crate) fn claim_end(&self, fence: &pb::Fence) -> bool {
        let mut state = self.lock();
        state.fence == *fence && !std::mem::replace(&mut state.parted, true)
    }

    /// Waits for the beginning of a generation after this one, without limit while the coordinator is there; without it
    /// for this long.
    ///
    /// Before the first (`after` is 0) there is no state that could be lost, so a leave ends the wait.
    pub(crate) fn wait_begin(&self, after: u32, alone_limit: Duration) -> Result<pb::Begin, Interrupt> {
        let waiting = Instant::now();
        let mut state = self.lock();
        loop {
            if state.stop.is_some() {
                return Err(Interrupt::Stop);
            }
            if let Some(begin) = state.begin.as_ref().filter(|begin| generation(begin) > after) {
                return Ok(begin.clone());
            }
            let leaving = self.is_leaving();
            if leaving && after == 0 {
                return Err(Interrupt::Leave);
            }
            let limit = if leaving { alone_limit.min(LEAVING_ALONE) } else { alone_limit };
            if state.alone_since.is_some_and(|since| since.max(waiting).elapsed() >= limit) {
                return Err(Interrupt::Alone);
            }
            let waited = self.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether a generation begins that is newer than the one that the run is in.
    pub(crate) fn is_superseded(&self) -> bool {
        self.lock().is_superseded()
    }

    /// Waits until the run is stopped, or a newer generation begins if that counts; at most this long. True when it was.
    pub(crate) fn wait_end(&self, patience: Duration, newer: bool) -> bool {
        let is_over = |state: &State| state.stop.is_some() || newer && state.is_superseded();
        let waited = self.changed.wait_timeout_while(self.lock(), patience, |state| !is_over(state));
        is_over(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves nothing half-written here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_superseded(&self) -> bool {
        self.begin.as_ref().is_some_and(|begin| generation(begin) > self.fence.generation)
    }
}

fn generation(begin: &pb::Begin) -> u32 {
    begin.fence.as_ref().map_or(0, |fence| fence.generation)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(generation: u32) -> pb::Fence {
        pb::Fence { attempt: 1, generation, generation_id: format!("{generation:016x}") }
    }

    fn begin(generation: u32) -> pb::Begin {
        pb::Begin { fence: Some(fence(generation)), ..Default::default() }
    }

    fn control() -> RunControl {
        RunControl::new(fence(0))
    }

    const NEVER: Duration = Duration::from_secs(3600);

    #[test]
    fn a_newer_generation_ends_the_present_one_and_an_older_is_ignored() {
        let control = control();
        control.begin(begin(1));
        assert_eq!(control.wait_begin(0, NEVER), Ok(begin(1)));
        let abort = control.arm(fence(1));
        control.begin(begin(1));
        assert_eq!(abort.failure(), None, "repeated");
        control.begin(begin(3));
        assert!(abort.failure().is_some() && !control.claim_end(&fence(1)));
        control.begin(begin(2));
        assert_eq!(control.wait_begin(1, NEVER), Ok(begin(3)));
        assert!(control.arm(fence(2)).failure().is_some(), "ended before it was entered");
        assert!(control.arm(fence(3)).failure().is_none());
        assert_eq!(control.fence(), fence(3));
    }

    #[test]
    fn a_newer_generation_ends_a_pause_where_it_counts() {
        let control = control();
        control.begin(begin(1));
        let _abort = control.arm(fence(1));
        assert!(!control.is_superseded() && !control.wait_end(Duration::ZERO, true));
        control.begin(begin(2));
        assert!(control.is_superseded() && control.wait_end(NEVER, true));
        assert!(!control.wait_end(Duration::ZERO, false), "a checkpoint that somebody leaves on");
        let _abort = control.arm(fence(2));
        assert!(!control.is_superseded());
        control.stop(pb::StopReason::Cancelled);
        assert!(control.wait_end(NEVER, false));
    }

    #[test]
    fn the_end_of_a_generation_is_told_once() {
        let control = control();
        let _abort = control.arm(fence(1));
        assert!(!control.claim_end(&fence(2)));
        assert!(control.claim_end(&fence(1)) && !control.claim_end(&fence(1)));
        let _abort = control.arm(fence(2));
        assert!(!control.claim_end(&fence(1)) && control.claim_end(&fence(2)));
    }

    #[test]
    fn only_a_place_without_a_state_is_given_back_at_once() {
        let control = control();
        control.leave();
        assert_eq!(control.wait_begin(0, NEVER), Err(Interrupt::Leave));
        control.set_connected(false);
        assert_eq!(control.wait_begin(1, Duration::ZERO), Err(Interrupt::Alone));
        control.set_connected(true);
        control.begin(begin(2));
        assert_eq!(control.wait_begin(1, Duration::ZERO), Ok(begin(2)));
        control.stop(pb::StopReason::Cancelled);
        assert_eq!(control.wait_begin(1, NEVER), Err(Interrupt::Stop));
        assert!(control.arm(fence(2)).failure().is_some());
    }

    #[test]
    fn regrouping_is_of_one_generation() {
        let control = control();
        control.regroup(fence(2));
        let _abort = control.arm(fence(1));
        assert!(!control.is_regrouping());
        let _abort = control.arm(fence(2));
        assert!(control.is_regrouping());
    }
}
