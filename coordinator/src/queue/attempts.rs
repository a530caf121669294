//! Attempts: closed, listed.

use chrono::{DateTime, Utc};
use lorafleet_proto::v1 as pb;
use sqlx::{PgConnection, PgPool};

use crate::{
    convert,
    db::{DbError, text},
    ids::{Fence, JobId, WorkerId},
    job::AttemptState,
};

/// A job's number of steps is known. The caller holds its lock.
pub async fn set_plan(tx: &mut PgConnection, job: JobId, ready: &pb::Ready) -> Result<(), DbError> {
    sqlx::query!(
        "update jobs set total_steps = $2, flops_per_token = $3 where job_id = $1",
        job.0,
        convert::to_i64(ready.total_steps),
        flops_per_token(ready),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// What one token costs. Whatever a worker of another build may say: sums of it stay numbers.
pub(super) fn flops_per_token(ready: &pb::Ready) -> f64 {
    Some(ready.flops_per_token).filter(|flops| flops.is_finite() && *flops >= 0.0).unwrap_or(0.0)
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

/// The live attempt of a job, if it has one.
pub async fn live_attempt(pool: &PgPool, job: JobId) -> Result<Option<u32>, DbError> {
    let attempt =
        sqlx::query_scalar!("select attempt from jobs where job_id = $1 and state = 'RUNNING'", job.0)
            .fetch_optional(pool)
            .await?;
    Ok(attempt.map(convert::to_u32))
}

/// Running jobs in which a worker has a place, and in which another member has parted and waits.
pub async fn jobs_that_wait_for(pool: &PgPool, worker: WorkerId) -> Result<Vec<JobId>, DbError> {
    let jobs = sqlx::query_scalar!(
        "select p.job_id from places p join jobs j on j.job_id = p.job_id and j.attempt = p.attempt
         where p.worker_id = $1 and p.live and j.state = 'RUNNING' and exists (
           select 1 from places o where o.job_id = p.job_id and o.attempt = p.attempt and o.live
             and o.parted is not null)",
        worker.0,
    )
    .fetch_all(pool)
    .await?;
    Ok(jobs.into_iter().map(JobId).collect())
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
                  array(select p.worker from places p where p.job_id = a.job_id and p.attempt = a.attempt
                        order by p.place) as "workers!"
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
