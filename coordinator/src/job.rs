//! The state machine of jobs and attempts, as types: a state can only be written by a [`Transition`], and only these
//! functions make one.

use lorafleet_proto::v1 as pb;

/// Attempts in a row that may end with all members gone and without a new finished step before the job fails: it
/// kills its workers.
pub const MAX_INFRASTRUCTURE_FAILURES: u32 = 3;

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobState {
    /// Waits for workers.
    Queued,
    /// An attempt is live.
    Running,
    /// Holds no workers until its user resumes it.
    Paused,
    /// Ended well.
    Succeeded,
    /// Ended badly.
    Failed,
    /// Ended by its user.
    Cancelled,
}

/// Where an attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttemptState {
    /// Live.
    Running,
    /// It ended the job well.
    Succeeded,
    /// The job's own fault.
    Failed,
    /// Members died or lost each other.
    Lost,
    /// Given back politely.
    Released,
    /// The user cancelled the job.
    Cancelled,
}

/// What becomes of a running job whose workers were all asked to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Yielding {
    /// Its user pauses it.
    Pause,
    /// A job of higher priority needs its workers.
    Preempt,
}

/// How far a live attempt has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Members load base and data.
    Loading,
    /// All were ready and were told to begin.
    Training,
    /// A member is gone; the others are told to stop.
    Closing,
    /// Not live any more.
    Ended,
}

/// What can happen to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A gang takes it.
    Started,
    /// A member reported the end of training.
    Succeeded,
    /// The job's own fault, or its time is over.
    Failed,
    /// A member reported a failure of the job's own that may heal, and the job has tries left.
    Retried,
    /// The gang is gone; `exhausted` when that happened too often in a row.
    Lost {
        /// See [`infrastructure_failures`].
        exhausted: bool,
    },
    /// The gang gave the job back at a step boundary.
    Released,
    /// The gang gave the job back for one of higher priority.
    Preempted,
    /// Its user wants it to hold no workers.
    Paused,
    /// Its user wants it to go on.
    Resumed,
    /// The user wants no more of it, or what it comes after did not succeed.
    Cancelled,
}

/// A permitted change of a job's state, and of the attempt's that is live with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    from: JobState,
    to: JobState,
    attempt: Option<AttemptState>,
}

/// A change that the state machine does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the job {}; it cannot be {}", .from.told(), .cause.verb())]
pub struct Illegal {
    /// The state it is in.
    pub from: JobState,
    /// What was to happen.
    pub cause: Cause,
}

/// How a member's part in an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemberOutcome {
    /// It reported success.
    Succeeded,
    /// It reported the job's own fault.
    Failed,
    /// Its lease ended, or it lost its peers.
    Lost,
    /// It gave its place back politely.
    Released,
    /// It stopped because it was told to.
    Stopped,
    /// The gang went on without it.
    Expelled,
}

/// The next count of infrastructure failures, and whether it exhausts the job's patience, after an attempt was lost.
/// An attempt that finished a step nobody had finished before starts the count anew.
pub fn infrastructure_failures(before: u32, made_new_step: bool) -> (u32, bool) {
    let count = if made_new_step { 0 } else { before.saturating_add(1) };
    (count, count >= MAX_INFRASTRUCTURE_FAILURES)
}

// === impl JobState ===

impl JobState {
    /// All states.
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Running, Self::Paused, Self::Succeeded, Self::Failed, Self::Cancelled];

    /// The one place that says which transitions exist.
    pub fn on(self, cause: Cause) -> Result<Transition, Illegal> {
        use JobState::{Cancelled, Failed, Paused, Queued, Running, Succeeded};
        let (to, attempt) = match (self, cause) {
            (Queued, Cause::Started) => (Running, None),
            (Queued, Cause::Paused) => (Paused, None),
            (Paused, Cause::Resumed) => (Queued, None),
            (Queued | Paused, Cause::Cancelled) => (Cancelled, None),
            (Queued | Paused, Cause::Failed) => (Failed, None),
            (Running, Cause::Cancelled) => (Cancelled, Some(AttemptState::Cancelled)),
            (Running, Cause::Succeeded) => (Succeeded, Some(AttemptState::Succeeded)),
            (Running, Cause::Failed) => (Failed, Some(AttemptState::Failed)),
            (Running, Cause::Retried) => (Queued, Some(AttemptState::Failed)),
            (Running, Cause::Released | Cause::Preempted) => (Queued, Some(AttemptState::Released)),
            (Running, Cause::Paused) => (Paused, Some(AttemptState::Released)),
            (Running, Cause::Lost { exhausted: false }) => (Queued, Some(AttemptState::Lost)),
            (Running, Cause::Lost { exhausted: true }) => (Failed, Some(AttemptState::Lost)),
            (from, cause) => return Err(Illegal { from, cause }),
        };
        Ok(Transition { from: self, to, attempt })
    }

    /// It never changes again.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Of a job, after its name.
    pub fn told(self) -> &'static str {
        match self {
            Self::Queued => "is queued",
            Self::Running => "is running",
            Self::Paused => "is paused",
            Self::Succeeded => "has succeeded",
            Self::Failed => "has failed",
            Self::Cancelled => "was cancelled",
        }
    }

    /// As the database keeps it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Running => "RUNNING",
            Self::Paused => "PAUSED",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }

    /// Reads [`JobState::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

impl From<JobState> for pb::JobState {
    fn from(state: JobState) -> Self {
        match state {
            JobState::Queued => Self::Queued,
            JobState::Running => Self::Running,
            JobState::Paused => Self::Paused,
            JobState::Succeeded => Self::Succeeded,
            JobState::Failed => Self::Failed,
            JobState::Cancelled => Self::Cancelled,
        }
    }
}

// === impl Cause ===

impl Cause {
    /// What it does to a job.
    fn verb(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Succeeded => "ended well",
            Self::Failed => "failed",
            Self::Retried => "tried again",
            Self::Lost { .. } => "lost",
            Self::Released => "given back",
            Self::Preempted => "preempted",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Cancelled => "cancelled",
        }
    }
}

// === impl Transition ===

impl Transition {
    /// The state that the row must be in.
    pub fn from(self) -> JobState {
        self.from
    }

    /// The state that the row gets.
    pub fn to(self) -> JobState {
        self.to
    }

    /// The state that the live attempt gets; none where no attempt is live before.
    pub fn attempt(self) -> Option<AttemptState> {
        self.attempt
    }
}

// === impl AttemptState ===

impl AttemptState {
    /// All states.
    pub const ALL: [Self; 6] =
        [Self::Running, Self::Succeeded, Self::Failed, Self::Lost, Self::Released, Self::Cancelled];

    /// As the database keeps it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Lost => "LOST",
            Self::Released => "RELEASED",
            Self::Cancelled => "CANCELLED",
        }
    }

    /// Reads [`AttemptState::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

impl From<AttemptState> for pb::AttemptState {
    fn from(state: AttemptState) -> Self {
        match state {
            AttemptState::Running => Self::Running,
            AttemptState::Succeeded => Self::Succeeded,
            AttemptState::Failed => Self::Failed,
            AttemptState::Lost => Self::Lost,
            AttemptState::Released => Self::Released,
            AttemptState::Cancelled => Self::Cancelled,
        }
    }
}

// === impl Yielding ===

impl Yielding {
    /// As the database keeps it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "PAUSE",
            Self::Preempt => "PREEMPT",
        }
    }

    /// Reads [`Yielding::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pause, Self::Preempt].into_iter().find(|yielding| yielding.as_str() == text)
    }
}

// === impl Phase ===

impl Phase {
    /// All phases.
    pub const ALL: [Self; 4] = [Self::Loading, Self::Training, Self::Closing, Self::Ended];

    /// As the database keeps it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loading => "LOADING",
            Self::Training => "TRAINING",
            Self::Closing => "CLOSING",
            Self::Ended => "ENDED",
        }
    }

    /// Reads [`Phase::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == text)
    }
}

// === impl MemberOutcome ===

impl MemberOutcome {
    /// All outcomes.
    pub const ALL: [Self; 6] =
        [Self::Succeeded, Self::Failed, Self::Lost, Self::Released, Self::Stopped, Self::Expelled];

    /// As the database keeps it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Lost => "LOST",
            Self::Released => "RELEASED",
            Self::Stopped => "STOPPED",
            Self::Expelled => "EXPELLED",
        }
    }

    /// Reads [`MemberOutcome::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn causes() -> impl Strategy<Value = Cause> {
        prop_oneof![
            Just(Cause::Started),
            Just(Cause::Succeeded),
            Just(Cause::Failed),
            any::<bool>().prop_map(|exhausted| Cause::Lost { exhausted }),
            Just(Cause::Retried),
            Just(Cause::Released),
            Just(Cause::Preempted),
            Just(Cause::Paused),
            Just(Cause::Resumed),
            Just(Cause::Cancelled),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: a terminal state never changes, and an attempt ends exactly when the
        /// job stops running.
        #[test]
        fn terminal_states_stay_and_attempts_pair_up(causes in prop::collection::vec(causes(), 0..40)) {
            let (mut state, mut live_attempts) = (JobState::Queued, 0);
            for cause in causes {
                match state.on(cause) {
                    Ok(change) => {
                        prop_assert!(!state.is_terminal());
                        prop_assert_eq!(change.from(), state);
                        live_attempts += i32::from(change.to() == JobState::Running);
                        live_attempts -= i32::from(change.attempt().is_some());
                        prop_assert_ne!(change.attempt(), Some(AttemptState::Running));
                        state = change.to();
                    }
                    Err(illegal) => prop_assert_eq!(illegal.from, state),
                }
                prop_assert_eq!(live_attempts, i32::from(state == JobState::Running));
            }
        }

        /// The count of lost attempts passes its limit exactly when the last three made no step.
        #[test]
        fn three_lost_attempts_without_a_step_exhaust(made in prop::collection::vec(any::<bool>(), 0..12)) {
            let mut count = 0;
            for (i, made_step) in made.iter().enumerate() {
                let (next, exhausted) = infrastructure_failures(count, *made_step);
                let last_three = i >= 2 && made[i - 2..=i].iter().all(|m| !m);
                prop_assert_eq!(exhausted, last_three);
                if exhausted { break; }
                count = next;
            }
        }
    }

    #[test]
    fn a_pause_ends_by_resuming_and_holds_no_attempt() {
        let paused = JobState::Running.on(Cause::Paused).unwrap();
        assert_eq!((paused.to(), paused.attempt()), (JobState::Paused, Some(AttemptState::Released)));
        assert!(JobState::Paused.on(Cause::Started).is_err());
        assert!(JobState::Paused.on(Cause::Paused).is_err());
        assert_eq!(JobState::Paused.on(Cause::Resumed).unwrap().to(), JobState::Queued);
        assert!(JobState::Queued.on(Cause::Resumed).is_err());
    }

    #[test]
    fn texts_are_read_back() {
        assert!(JobState::ALL.iter().all(|s| JobState::parse(s.as_str()) == Some(*s)));
        assert!(AttemptState::ALL.iter().all(|s| AttemptState::parse(s.as_str()) == Some(*s)));
        assert!(Phase::ALL.iter().all(|s| Phase::parse(s.as_str()) == Some(*s)));
        assert!(MemberOutcome::ALL.iter().all(|s| MemberOutcome::parse(s.as_str()) == Some(*s)));
    }
}
