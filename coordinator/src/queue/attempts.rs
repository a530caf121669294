//! Attempts: opened with their gang, brought to training, closed, listed.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lorafleet_proto::v1 as pb;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    convert,
    db::{DbError, text},
    ids::{Fence, JobId},
    job::AttemptState,
    scheduler::Place,
};

/// What was opened.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The members' names, by index.
    pub workers: Vec<String>,
    /// The workers' kinds.
    pub kinds: String,
    /// The kinds of the gang before; empty at the first attempt.
    pub kinds_before: String,
    /// Time since the job was submitted.
    pub waited: Duration,
}

/// Opens an attempt with its first generation and its gang. The caller holds the job's lock and has moved it to
/// RUNNING. `None`: a worker of the plan is gone or draining by now, and the transaction must be given up; otherwise
/// what the caller tells about it.
pub async fn open_attempt(
    tx: &mut PgConnection,
    job: JobId,
    fence: &Fence,
    places: &[Place],
) -> Result<Option<Opened>, DbError> {
    let (attempt, generation) = (fence.attempt_i32(), fence.generation_i32());
    let world_size = convert::to_i32(u32::try_from(places.len()).unwrap_or(u32::MAX));
    sqlx::query!(
        "with opened as (
           insert into attempts (job_id, attempt, steps_before) select job_id, $2, step from jobs where job_id = $1
         ) insert into generations (job_id, attempt, generation, generation_id, world_size) values ($1, $2, $3, $4, $5)",
        job.0,
        attempt,
        generation,
        fence.generation_id,
        world_size,
    )
    .execute(&mut *tx)
    .await?;
    let workers: Vec<Uuid> = places.iter().map(|place| place.worker.0).collect();
    let slots: Vec<i32> = places.iter().map(|place| convert::to_i32(place.slot)).collect();
    let members = sqlx::query!(
        r#"with member as (
             insert into assignments (job_id, attempt, generation, index, worker_id, worker, address, slot)
             select $1, $2, $3, p.index - 1, w.worker_id, w.name, w.collective_address, p.slot
             from unnest($4::uuid[], $5::int[]) with ordinality p (worker_id, slot, index)
             join workers w on w.worker_id = p.worker_id and w.state = 'LIVE' and not w.draining
             returning index, worker_id, worker
           ) select member.worker as "worker!", w.kind as "kind!"
           from member join workers w using (worker_id) order by member.index"#,
        job.0,
        attempt,
        generation,
        &workers,
        &slots,
    )
    .fetch_all(&mut *tx)
    .await?;
    if members.len() != places.len() {
        return Ok(None);
    }
    let mut kinds: Vec<String> = members.iter().map(|member| member.kind.clone()).collect();
    kinds.sort();
    kinds.dedup();
    let kinds = kinds.join(", ");
    let job = sqlx::query!(
        r#"update jobs j set attempt = $2, generation = $3, generation_id = $4, world_size = $5, kinds = $6
           from (select kinds from jobs where job_id = $1) before
           where j.job_id = $1
           returning before.kinds, extract(epoch from now() - j.create_time)::float8 as "waited!""#,
        job.0,
        attempt,
        generation,
        fence.generation_id,
        world_size,
        kinds,
    )
    .fetch_one(tx)
    .await?;
    Ok(Some(Opened {
        workers: members.into_iter().map(|member| member.worker).collect(),
        kinds,
        kinds_before: job.kinds,
        waited: Duration::try_from_secs_f64(job.waited).unwrap_or_default(),
    }))
}

/// LOADING → TRAINING. The caller holds the job's lock and has seen the phase.
pub async fn begin_training(
    tx: &mut PgConnection,
    job: JobId,
    start_step: u64,
    total_steps: u64,
) -> Result<(), DbError> {
    sqlx::query!(
        "with begun as (
           update attempts set phase = 'TRAINING', start_step = $2
           where job_id = $1 and state = 'RUNNING' and phase = 'LOADING' returning job_id
         ) update jobs set total_steps = $3 from begun where jobs.job_id = begun.job_id",
        job.0,
        convert::to_i64(start_step),
        convert::to_i64(total_steps),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// A live attempt begins to close, for a reason. The caller holds the job's lock. The first reason stays.
pub async fn close(tx: &mut PgConnection, job: JobId, message: &str) -> Result<(), DbError> {
    sqlx::query!(
        "update attempts set phase = 'CLOSING', message = $2
         where job_id = $1 and state = 'RUNNING' and phase in ('LOADING', 'TRAINING')",
        job.0,
        text(message, 4096),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The state of the attempt that a fence belongs to; `None` when there never was such a fence.
pub async fn attempt_state(
    pool: &PgPool,
    job: JobId,
    fence: &Fence,
) -> Result<Option<AttemptState>, DbError> {
    let state = sqlx::query_scalar!(
        "select a.state from generations g join attempts a on a.job_id = g.job_id and a.attempt = g.attempt
         where g.job_id = $1 and g.attempt = $2 and g.generation = $3 and g.generation_id = $4",
        job.0,
        fence.attempt_i32(),
        fence.generation_i32(),
        fence.generation_id,
    )
    .fetch_optional(pool)
    .await?;
    state
        .map(|state| {
            AttemptState::parse(&state).ok_or_else(|| DbError::Data(format!("attempt state {state}")))
        })
        .transpose()
}

/// Live attempts whose members still load, for the scheduler to time.
pub async fn loading(pool: &PgPool) -> Result<Vec<(JobId, Fence)>, DbError> {
    let rows = sqlx::query!(
        "select a.job_id, a.attempt, j.generation, j.generation_id
         from attempts a join jobs j on j.job_id = a.job_id and j.attempt = a.attempt
         where a.state = 'RUNNING' and a.phase = 'LOADING'",
    )
    .fetch_all(pool)
    .await?;
    let fence = |attempt, generation, generation_id| Fence {
        attempt: convert::to_u32(attempt),
        generation: convert::to_u32(generation),
        generation_id,
    };
    Ok(rows
        .into_iter()
        .map(|row| (JobId(row.job_id), fence(row.attempt, row.generation, row.generation_id)))
        .collect())
}

/// At most `limit` attempts of a job after a number, first to last.
pub async fn list_attempts(
    pool: &PgPool,
    job: JobId,
    after: u32,
    limit: u32,
) -> Result<Vec<pb::Attempt>, DbError> {
    let rows = sqlx::query_as!(
        AttemptRow,
        r#"select a.attempt, a.state, a.message, a.start_time, a.end_time, a.start_step,
                  array(select m.worker from assignments m where m.job_id = a.job_id and m.attempt = a.attempt
                        order by m.generation, m.index) as "workers!"
           from attempts a where a.job_id = $1 and a.attempt > $2 order by a.attempt limit $3"#,
        job.0,
        convert::to_i32(after),
        i64::from(limit),
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(|row| row.message(job)).collect()
}

struct AttemptRow {
    attempt: i32,
    state: String,
    message: String,
    start_time: DateTime<Utc>,
    end_time: Option<DateTime<Utc>>,
    start_step: i64,
    workers: Vec<String>,
}

impl AttemptRow {
    fn message(self, job: JobId) -> Result<pb::Attempt, DbError> {
        let state = AttemptState::parse(&self.state)
            .ok_or_else(|| DbError::Data(format!("attempt state {}", self.state)))?;
        Ok(pb::Attempt {
            name: format!("{}/attempts/{}", job.name(), self.attempt),
            attempt: convert::to_u32(self.attempt),
            state: pb::AttemptState::from(state).into(),
            message: self.message,
            start_time: Some(convert::timestamp(self.start_time)),
            end_time: self.end_time.map(convert::timestamp),
            workers: self.workers,
            start_step: convert::to_u64(self.start_step),
        })
    }
}
