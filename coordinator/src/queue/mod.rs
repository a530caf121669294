//! Every SQL statement about jobs, attempts, generations and the places that workers hold in them.

mod alone;
mod attempts;
mod create;
mod gangs;
mod generations;
mod held;
mod jobs;
mod life;
mod places;
mod snapshot;
mod starts;
mod successes;

pub use alone::{Begun, Single, begin_alone};
pub use attempts::{close, jobs_that_wait_for, list_attempts, live_attempt, loading, set_plan};
pub use create::{
    NewJob, create_all, create_apart, held_at_first, insert_all, is_repeated, is_tenant_gone, states,
};
pub use gangs::{GangEntry, SeatEntry, gangs, time_left, troubled_places};
pub use generations::{Beginning, NewGeneration, begin_all, members, members_under, open_generation};
pub use held::{Held, held};
use jobs::parse_state as parse_job_state;
pub use jobs::{
    JobRow, Live, action, belongs, by_request_id, exists, get, list, lock, lock_all, lock_live, lock_running,
    record_failures, record_result, specs, transition,
};
pub use life::{
    EndedDependency, HeldBy, Overdue, Standing, come_due, due, held_by, hold_if_needed, overdue,
    record_preemption, record_retry, release, retries, set_yielding, settle_dependencies, standing,
    unsettled, yielding,
};
pub use places::{
    Orphan, Place, PlaceEnd, Whereabouts, add_place, end_place, end_places, is_member, orphans, places,
    places_of, set_leaving, set_parted, set_ready, whereabouts,
};
pub use snapshot::{QueueEntry, Said, Window, depth, explain, explain_tenant, queued};
pub use starts::start_all;
pub use successes::{Look, Success, succeed_all};

use crate::db::DbError;

/// What one holds the lock of does not move away.
fn all_moved(moved: i64, wanted: usize) -> Result<(), DbError> {
    if usize::try_from(moved) == Ok(wanted) {
        return Ok(());
    }
    Err(DbError::Data(format!(
        "{wanted} jobs that were locked, of which only {moved} were as they had been read"
    )))
}
