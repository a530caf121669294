//! Every SQL statement about jobs, attempts, generations and the places that workers hold in them.

mod attempts;
mod create;
mod gangs;
mod generations;
mod held;
mod jobs;
mod life;
mod places;
mod snapshot;

pub use attempts::{close, jobs_that_wait_for, list_attempts, live_attempt, loading, open_attempt, set_plan};
pub use create::{NewJob, create_all, insert_all, is_repeated, is_tenant_gone, states};
pub use gangs::{GangEntry, SeatEntry, gangs, troubled_places};
pub use generations::{NewGeneration, members, open_generation, was_member};
pub use held::{Held, held};
use jobs::parse_state as parse_job_state;
pub use jobs::{
    JobRow, Live, action, by_request_id, exists, get, list, lock, lock_live, lock_running, record_failures,
    record_result, spec, transition,
};
pub use life::{
    EndedDependency, HeldBy, Overdue, Standing, come_due, due, held_by, hold_if_needed, overdue,
    record_preemption, record_retry, release, retries, set_yielding, settle_dependencies, standing,
    unsettled, yielding,
};
pub use places::{
    Orphan, Place, Whereabouts, add_place, end_place, is_member, orphans, places, set_leaving, set_parted,
    set_ready, whereabouts,
};
pub use snapshot::{QueueEntry, depth, explain, explain_tenant, queued};
