//! What the exit code of a command tells a script.

use std::process::ExitCode;

use lorafleet::{ClientError, HubError, pb};

/// The codes, as `--help` tells them.
pub const HELP: &str = "\
Exit codes:
  0  done
  1  the job that was followed failed or was cancelled
  2  the command line or the job file is not right; each mistake is printed
  3  there is no such job, checkpoint or file
  4  the coordinator (or the hub) cannot be reached
  5  refused: the job's state, a quota or the token does not allow it, or it was already done otherwise
  6  what was fetched is damaged
  70 anything else";

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did what was asked.
    Done = 0,
    /// The job that was followed did not end well.
    JobNotSucceeded = 1,
    /// The user's input has mistakes.
    Invalid = 2,
    /// What was named does not exist.
    NotFound = 3,
    /// No coordinator answers.
    Unreachable = 4,
    /// Not in the present state of things.
    Refused = 5,
    /// Bytes do not have their digest.
    Damaged = 6,
    /// A fault that no script can act on.
    Internal = 70,
}

impl Exit {
    /// The code for an error.
    pub fn of(error: &anyhow::Error) -> Self {
        match error.downcast_ref::<ClientError>() {
            Some(ClientError::Invalid { .. }) => Self::Invalid,
            Some(ClientError::NotFound(_)) => Self::NotFound,
            Some(ClientError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Self::NotFound
            }
            Some(ClientError::Unreachable { .. }) => Self::Unreachable,
            Some(ClientError::Refused(_) | ClientError::Denied(_)) => Self::Refused,
            Some(ClientError::Damaged { .. } | ClientError::Hub(HubError::Damaged { .. })) => Self::Damaged,
            Some(ClientError::Hub(HubError::NoModel { .. } | HubError::NoRevision { .. })) => Self::NotFound,
            Some(ClientError::Hub(HubError::Unreachable { .. } | HubError::Busy { .. })) => Self::Unreachable,
            Some(ClientError::Hub(HubError::Unusable { .. })) => Self::Invalid,
            Some(ClientError::Hub(HubError::Denied { .. } | HubError::Gated { .. })) => Self::Refused,
            _ => Self::Internal,
        }
    }

    /// The code for a job that has ended.
    pub fn of_state(state: pb::JobState) -> Self {
        if state == pb::JobState::Succeeded { Self::Done } else { Self::JobNotSucceeded }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
