//! Many attempts started by one statement: jobs, attempts, places and events of all that a decision gave workers to.

use std::time::Duration;

use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    convert,
    db::DbError,
    ids::{JobId, PlaceNo},
    job::Transition,
    leadership::Leadership,
    scheduler::Place,
};

/// An attempt that was started.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// The job.
    pub job: JobId,
    /// The attempt's number.
    pub attempt: u32,
    /// Time since the job was submitted.
    pub waited: Duration,
}

/// Starts an attempt of each job on the places it was given, and tells it by an event. A job is left out that is not
/// queued any more or is held, or of whose workers one is gone or takes no work; all are while `leadership` holds no
/// more. An error of a unique index: one of the slots is taken, and nothing was written.
pub async fn start_all(
    pool: &PgPool,
    leadership: &Leadership,
    change: Transition,
    jobs: &[(JobId, &[Place])],
) -> Result<Vec<Started>, DbError> {
    let Columns { job, worker, slot, place } = Columns::of(jobs);
    let rows = sqlx::query!(
        r#"with wanted as (
             select * from unnest($5::uuid[], $6::uuid[], $7::int[], $8::int[]) w (job_id, worker_id, slot, place)
           ), staffed as (
             select w.job_id, count(*)::int as size, string_agg(k.name, ', ' order by w.place) as names
             from wanted w left join workers k on k.worker_id = w.worker_id and k.state = 'LIVE' and not k.draining
             group by w.job_id having count(*) = count(k.worker_id)
           ), locked as materialized (
             select job_id from jobs where job_id = any($5) and state = $3 and not held
             order by job_id for no key update
           ), taken as (
             update jobs j set state = $4, state_message = '', start_time = coalesce(j.start_time, now()),
                    queue_position = null, start_estimate_seconds = null, yielding = null, attempt = j.attempt + 1,
                    generation = 0, generation_id = '', world_size = s.size, last_event = j.last_event + 1
             from staffed s join locked l on l.job_id = s.job_id
             where j.job_id = s.job_id and j.state = $3
               and exists (select 1 from scheduler_lease where holder = $1 and epoch = $2)
             returning j.job_id, j.attempt, j.step, j.last_event, j.create_time, s.size, s.names
           ), opened as (
             insert into attempts (job_id, attempt, steps_before) select job_id, attempt, step from taken
           ), placed as (
             insert into places (job_id, attempt, place, worker_id, worker, address, kind, slot)
             select t.job_id, t.attempt, w.place, k.worker_id, k.name, k.collective_address, k.kind, w.slot
             from taken t join wanted w on w.job_id = t.job_id join workers k on k.worker_id = w.worker_id
           ), told as (
             insert into job_events (job_id, number, kind, message, attempt)
             select job_id, last_event, 'started', format('attempt %s on %s worker%s: %s', attempt, size,
                    case when size > 1 then 's' else '' end, names), attempt
             from taken
           ) select job_id as "job_id!", attempt as "attempt!",
                    extract(epoch from now() - create_time)::float8 as "waited!" from taken"#,
        leadership.holder(),
        leadership.epoch(),
        change.from().as_str(),
        change.to().as_str(),
        &job,
        &worker,
        &slot,
        &place,
    )
    .fetch_all(pool)
    .await?;
    let started = |row: (Uuid, i32, f64)| Started {
        job: JobId(row.0),
        attempt: convert::to_u32(row.1),
        waited: convert::seconds(row.2),
    };
    Ok(rows.into_iter().map(|row| started((row.job_id, row.attempt, row.waited))).collect())
}

/// One entry a place.
#[derive(Default)]
struct Columns {
    job: Vec<Uuid>,
    worker: Vec<Uuid>,
    slot: Vec<i32>,
    place: Vec<i32>,
}

impl Columns {
    fn of(jobs: &[(JobId, &[Place])]) -> Self {
        let mut columns = Self::default();
        for (job, places) in jobs {
            for (number, place) in (1..).zip(*places) {
                columns.job.push(job.0);
                columns.worker.push(place.worker.0);
                columns.slot.push(convert::to_i32(place.slot));
                columns.place.push(PlaceNo(number).to_i32());
            }
        }
        columns
    }
}
