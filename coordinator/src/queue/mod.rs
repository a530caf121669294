//! Every SQL statement about jobs, attempts and the places that gangs hold.

mod attempts;
mod jobs;
mod places;
mod snapshot;

pub use attempts::{attempt_state, begin_training, close, list_attempts, loading, open_attempt};
pub use jobs::{
    Created, JobRow, Live, NewJob, by_request_id, create, exists, get, list, lock, lock_live,
    record_failures, record_result, spec, transition,
};
pub use places::{Held, Member, Orphan, end_member, held, is_member, members, orphans, set_ready};
pub use snapshot::{depth, explain, queued};
