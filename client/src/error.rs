//! What can go wrong between a client and the fleet, told so that a person or a script knows what to do.

use std::{io, path::PathBuf};

use lorafleet_spec::FieldError;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::hub::HubError;

/// An error of the client library.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No answer from the coordinator.
    #[error(
        "cannot reach the coordinator at {url}: {reason}. Start one with `lorafleet up`, or name another with \
         --coordinator URL or LORAFLEET_COORDINATOR"
    )]
    Unreachable {
        /// Where it was sought.
        url: String,
        /// The innermost cause.
        reason: String,
    },
    /// The request, or a file that it was made from, has mistakes.
    #[error("{message}{}", list(fields))]
    Invalid {
        /// What the mistakes are in.
        message: String,
        /// Each mistake.
        fields: Vec<FieldError>,
    },
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// Its state, or a quota, does not allow what was asked.
    #[error("{0}")]
    Refused(String),
    /// No token was shown, or one that does not allow it.
    #[error("{0}")]
    Denied(String),
    /// The coordinator answered with another error.
    #[error("the coordinator answered {code:?}: {message}")]
    Server {
        /// The gRPC code.
        code: Code,
        /// Its message.
        message: String,
    },
    /// The coordinator broke the API's contract.
    #[error("the coordinator's answer makes no sense: {0}")]
    Protocol(String),
    /// Bytes do not have the digest that they should have.
    #[error("{what} is damaged: sha256 is {found}, should be {expected}; try again")]
    Damaged {
        /// Which bytes.
        what: String,
        /// The digest that was promised.
        expected: String,
        /// The digest of what came.
        found: String,
    },
    /// The base could not be had from the hub.
    #[error("base: {0}")]
    Hub(HubError),
    /// A local file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl From<HubError> for ClientError {
    fn from(error: HubError) -> Self {
        Self::Hub(error)
    }
}

impl ClientError {
    /// Mistakes in what the user gave.
    pub fn invalid(message: impl Into<String>, fields: Vec<FieldError>) -> Self {
        Self::Invalid { message: message.into(), fields }
    }

    /// A failure of a local file.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }

    /// The error that a gRPC status from the coordinator at `url` means.
    pub fn from_status(url: &str, status: &Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::InvalidArgument => Self::Invalid { message, fields: violations(status) },
            Code::NotFound => Self::NotFound(message),
            Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted | Code::ResourceExhausted => {
                Self::Refused(message)
            }
            Code::Unauthenticated | Code::PermissionDenied => Self::Denied(message),
            Code::Unavailable | Code::DeadlineExceeded => {
                Self::Unreachable { url: url.to_owned(), reason: root_cause(status) }
            }
            code => Self::Server { code, message },
        }
    }
}

/// The field violations of an INVALID_ARGUMENT, with the paths of the job file (the wire's `spec.` left out).
fn violations(status: &Status) -> Vec<FieldError> {
    let found = status.get_details_bad_request().map(|details| details.field_violations).unwrap_or_default();
    let strip = |path: &str| path.strip_prefix("spec.").unwrap_or(path).to_owned();
    found.iter().map(|v| FieldError::new(strip(&v.field), v.description.as_str())).collect()
}

fn list(fields: &[FieldError]) -> String {
    fields.iter().map(|field| format!("\n  {field}")).collect()
}

/// The innermost cause of an error: a transport error alone only says "transport error".
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    match error.source() {
        Some(_) => cause.to_string(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, FieldViolation};

    use super::*;

    #[test]
    fn every_field_of_a_bad_request_is_told() {
        let details = ErrorDetails::with_bad_request(vec![
            FieldViolation::new("spec.adapter.rank", "must be at least 1"),
            FieldViolation::new("spec.train.lr", "must be above 0"),
        ]);
        let status = Status::with_error_details(Code::InvalidArgument, "2 mistakes", details);
        let error = ClientError::from_status("http://x", &status);
        assert_eq!(
            error.to_string(),
            "2 mistakes\n  adapter.rank: must be at least 1\n  train.lr: must be above 0"
        );
    }

    #[test]
    fn codes_become_what_a_caller_acts_on() {
        let of = |code| ClientError::from_status("http://x", &Status::new(code, "why"));
        assert!(matches!(of(Code::NotFound), ClientError::NotFound(m) if m == "why"));
        assert!(matches!(of(Code::FailedPrecondition), ClientError::Refused(_)));
        assert!(matches!(of(Code::ResourceExhausted), ClientError::Refused(_)));
        assert!(matches!(of(Code::PermissionDenied), ClientError::Denied(_)));
        assert!(matches!(of(Code::Unavailable), ClientError::Unreachable { .. }));
        assert!(matches!(of(Code::Internal), ClientError::Server { code: Code::Internal, .. }));
    }
}
