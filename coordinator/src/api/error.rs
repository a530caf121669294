//! The one place where errors become gRPC statuses, with the details that clients act on (AIP-193).

use std::{collections::HashMap, time::Duration};

use lorafleet_spec::FieldError;
use lorafleet_store::StoreError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    access::Refusal, check::CheckError, db::DbError, gang::ChangeError, ids::NameError, quota::AdmitError,
};

/// Domain of every ErrorInfo.
pub const DOMAIN: &str = "lorafleet.dev";
/// After this long a call that met an absent database may be tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a call can end with.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Fields of the request that are wrong, by their paths in the request.
    #[error("{}", .0.first().map(ToString::to_string).unwrap_or_default())]
    Invalid(Vec<FieldError>),
    /// Something named that is not there.
    #[error("{what} was not found")]
    NotFound {
        /// Its name.
        what: String,
        /// UPPER_SNAKE_CASE.
        reason: &'static str,
    },
    /// There is one of that name.
    #[error("{what} exists already")]
    Exists {
        /// Its name.
        what: String,
        /// UPPER_SNAKE_CASE.
        reason: &'static str,
    },
    /// The request_id belongs to another job.
    #[error("request_id {request_id} was used for another spec, by {job}")]
    RequestIdUsed {
        /// The id.
        request_id: String,
        /// The job that it made.
        job: String,
    },
    /// The caller may not do this.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The state does not allow it.
    #[error("{message}")]
    Precondition {
        /// What, and why not.
        message: String,
        /// UPPER_SNAKE_CASE.
        reason: &'static str,
    },
    /// Bytes that came are not those that were announced.
    #[error("{message}")]
    DataLoss {
        /// Which, and what differs.
        message: String,
        /// UPPER_SNAKE_CASE.
        reason: &'static str,
    },
    /// A limit of this coordinator is reached for now.
    #[error("{message}")]
    Exhausted {
        /// Which.
        message: String,
        /// UPPER_SNAKE_CASE.
        reason: &'static str,
    },
    /// The client was silent for too long.
    #[error("{message}")]
    Late {
        /// How long, and where.
        message: String,
    },
    /// The call's own stream broke; its status says how.
    #[error(transparent)]
    Stream(#[from] Status),
    /// The object store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl ApiError {
    /// One wrong field.
    pub fn field(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldError::new(path, message)])
    }

    /// A resource name that has not its form.
    pub fn name(field: &str, error: &NameError) -> Self {
        Self::field(field, error.to_string())
    }
}

impl From<CheckError> for ApiError {
    fn from(error: CheckError) -> Self {
        let in_request = |path: &str| match path {
            "" => "spec".to_owned(),
            path => format!("spec.{path}"),
        };
        match error {
            CheckError::Fields(errors) => Self::Invalid(
                errors.into_iter().map(|e| FieldError::new(in_request(&e.path), e.message)).collect(),
            ),
            CheckError::NotUploaded { field, what } => Self::NotFound {
                what: format!("{what} ({}): upload it first; it", in_request(field)),
                reason: "CONTENT_NOT_UPLOADED",
            },
            CheckError::Store(error) => Self::Store(error),
        }
    }
}

impl From<AdmitError> for ApiError {
    fn from(error: AdmitError) -> Self {
        match error {
            AdmitError::Exceeded(exceeded) => {
                Self::Exhausted { message: exceeded.to_string(), reason: "QUOTA_EXCEEDED" }
            }
            AdmitError::Db(error) => Self::Db(error),
        }
    }
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::NotFound => Self::NotFound { what: "the job".to_owned(), reason: "JOB_NOT_FOUND" },
            ChangeError::Illegal(illegal) => Self::Precondition {
                message: illegal.to_string(),
                reason: if illegal.from.is_terminal() { "JOB_HAS_ENDED" } else { "JOB_NOT_PAUSED" },
            },
            ChangeError::Db(error) => Self::Db(error),
        }
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let message = error.to_string();
        match error {
            ApiError::Invalid(fields) => invalid(&fields),
            ApiError::NotFound { reason, .. } => with_info(Code::NotFound, message, reason),
            ApiError::Exists { reason, .. } => with_info(Code::AlreadyExists, message, reason),
            ApiError::RequestIdUsed { .. } => with_info(Code::AlreadyExists, message, "REQUEST_ID_USED"),
            ApiError::Precondition { reason, .. } => with_info(Code::FailedPrecondition, message, reason),
            ApiError::DataLoss { reason, .. } => with_info(Code::DataLoss, message, reason),
            ApiError::Exhausted { reason, .. } => with_info(Code::ResourceExhausted, message, reason),
            ApiError::Late { .. } => with_info(Code::DeadlineExceeded, message, "CLIENT_SILENT"),
            ApiError::Refused(refusal) => {
                let (code, reason) = refused(&refusal);
                with_info(code, message, reason)
            }
            ApiError::Stream(status) => status,
            ApiError::Store(StoreError::Damaged { .. }) => {
                with_info(Code::DataLoss, message, "ARTIFACT_DAMAGED")
            }
            ApiError::Store(error) if error.is_transient() => unavailable(message, "STORE_UNAVAILABLE"),
            ApiError::Db(error) if error.is_transient() => unavailable(message, "DATABASE_UNAVAILABLE"),
            ApiError::Store(error) => internal(&error),
            ApiError::Db(error) => internal(&error),
        }
    }
}

fn refused(refusal: &Refusal) -> (Code, &'static str) {
    match refusal {
        Refusal::NoToken(_) => (Code::Unauthenticated, "TOKEN_REQUIRED"),
        Refusal::Garbage | Refusal::Unknown => (Code::Unauthenticated, "TOKEN_UNKNOWN"),
        Refusal::Revoked { .. } => (Code::Unauthenticated, "TOKEN_REVOKED"),
        Refusal::Expired { .. } => (Code::Unauthenticated, "TOKEN_EXPIRED"),
        Refusal::RoleTooLow { .. } => (Code::PermissionDenied, "ROLE_TOO_LOW"),
        Refusal::OtherTenant { .. } => (Code::PermissionDenied, "OTHER_TENANT"),
    }
}

fn invalid(fields: &[FieldError]) -> Status {
    let mut details = ErrorDetails::new();
    for field in fields {
        details.add_bad_request_violation(&field.path, &field.message);
    }
    let text: Vec<String> = fields.iter().map(ToString::to_string).collect();
    Status::with_error_details(Code::InvalidArgument, text.join("; "), details)
}

fn with_info(code: Code, message: String, reason: &str) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(code, message, details)
}

fn unavailable(message: String, reason: &str) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    details.set_retry_info(Some(RETRY_AFTER));
    Status::with_error_details(Code::Unavailable, message, details)
}

fn internal(error: &(dyn std::error::Error + 'static)) -> Status {
    // The client cannot act on it; the operator can, and finds it in the log.
    tracing::error!(error, "call failed");
    with_info(Code::Internal, "internal error; the coordinator's log says more".to_owned(), "INTERNAL")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_field_is_named_by_its_path_in_the_request() {
        let errors = vec![FieldError::new("adapter.rank", "is 0"), FieldError::new("", "is empty")];
        let status = Status::from(ApiError::from(CheckError::Fields(errors)));
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_error_details();
        let fields: Vec<_> =
            details.bad_request().expect("violations").field_violations.iter().map(|v| &v.field).collect();
        assert_eq!(fields, ["spec.adapter.rank", "spec"]);
    }

    #[test]
    fn an_absent_database_may_be_tried_again() {
        let status = Status::from(ApiError::from(DbError::Deadline));
        assert_eq!(status.code(), Code::Unavailable);
        let details = status.get_error_details();
        assert_eq!(details.error_info().map(|info| info.domain.as_str()), Some(DOMAIN));
        assert!(details.retry_info().is_some());
    }
}
