//! How a run ends: whose fault it is, and what the coordinator is told.

use lorafleet_failpoint::Injected;
use lorafleet_lora::train::TrainError;
use lorafleet_proto::v1 as pb;
use lorafleet_store::StoreError;
use pb::finished::Outcome;

use crate::collective::CollectiveError;

/// Why a run ends before its last step.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The job's own fault: what is wrong, where, and what to do.
    #[error("{0}")]
    Failed(String),
    /// As [`End::Failed`], for the whole gang alike, but another try may do better: the store does not answer.
    #[error("{0}")]
    MayHeal(String),
    /// The fault of machines and networks: another attempt may do better.
    #[error("{0}")]
    Lost(String),
    /// Given back politely.
    #[error("released after step {step}")]
    Released {
        /// The last finished step, which a checkpoint holds.
        step: u64,
    },
    /// It was told to stop.
    #[error("stopped")]
    Stopped,
}

impl End {
    /// The fault of this machine.
    pub fn lost(message: impl Into<String>) -> Self {
        Self::Lost(message.into())
    }

    /// As the coordinator is told.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Failed(message) => Outcome::Failed(pb::Failed { message, may_heal: false }),
            Self::MayHeal(message) => Outcome::Failed(pb::Failed { message, may_heal: true }),
            Self::Lost(message) => Outcome::Lost(pb::Lost { message, suspects: Vec::new() }),
            Self::Released { step } => Outcome::Released(pb::Released { step }),
            Self::Stopped => Outcome::Stopped(pb::Stopped {}),
        }
    }
}

/// Why a member does not come to the end of a generation. The two must not be taken for each other: after a breakage it
/// lives on, with its whole state.
#[derive(Debug, thiserror::Error)]
pub enum Halt {
    /// The collective broke. The step in flight is abandoned, and the next generation waited for.
    #[error(transparent)]
    Broken(CollectiveError),
    /// The run is over.
    #[error(transparent)]
    Ended(End),
}

impl From<CollectiveError> for Halt {
    fn from(error: CollectiveError) -> Self {
        match error {
            CollectiveError::Overflow { .. } => Self::Ended(End::Failed(format!(
                "{error}; lower train.lr or train.global_batch, or set train.reduce to f32"
            ))),
            // This machine's, or a bug: another generation would end in the same way.
            CollectiveError::Local(_) | CollectiveError::Invalid(_) | CollectiveError::TooLarge { .. } => {
                Self::Ended(End::lost(error.to_string()))
            }
            error => Self::Broken(error),
        }
    }
}

impl From<End> for Halt {
    fn from(end: End) -> Self {
        Self::Ended(end)
    }
}

impl From<TrainError> for Halt {
    fn from(error: TrainError) -> Self {
        Self::Ended(error.into())
    }
}

impl From<Injected> for Halt {
    fn from(injected: Injected) -> Self {
        Self::Ended(End::lost(injected.to_string()))
    }
}

impl From<TrainError> for End {
    fn from(error: TrainError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What a failure to read something that the job names means for the job.
pub fn missing(what: &str, error: &StoreError) -> End {
    let message = format!("{what}: {error}");
    match error {
        StoreError::NotFound { .. } => End::Failed(format!("{message}; upload it again")),
        StoreError::Damaged { .. } | StoreError::Sums { .. } | StoreError::TooLarge { .. } => {
            End::Failed(format!("{message}; delete it from the store and upload it again"))
        }
        error if error.is_transient() => End::MayHeal(message),
        _ => End::lost(message),
    }
}

/// The outcome's name in metrics and logs.
pub fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded(_) => "succeeded",
        Outcome::Failed(_) => "failed",
        Outcome::Lost(_) => "lost",
        Outcome::Released(_) => "released",
        Outcome::Stopped(_) => "stopped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_another_try_may_mend_is_said_to_heal() {
        let heals = |end: End| matches!(end.outcome(), Outcome::Failed(failed) if failed.may_heal);
        assert!(heals(End::MayHeal("the store does not answer".into())));
        assert!(!heals(End::Failed("line 7 is not JSON".into())));
        assert!(!heals(End::lost("the disk is full")));
    }
}
