//! Rows that are deleted when their time is over: jobs with all that they left, sweeps, workers, expired checkpoints.

use std::time::Duration;

use sqlx::{Postgres, postgres::PgArguments, query::Query};
use uuid::Uuid;

use super::{Desk, Retention, repeat};
use crate::db::{DbError, within};

/// Jobs in one transaction; each takes its attempts, places, checkpoints and what is left of its history along.
const JOBS: i64 = 200;
/// Other rows in one transaction.
const ROWS: i64 = 1000;
/// Of a job's expired checkpoints the newest stay: a worker may be about to delete their files.
const EXPIRED: i64 = 100;

/// Deletes jobs that ended too long ago, or that are too many. Gives how many.
pub(super) async fn jobs(desk: Desk<'_>, keep: &Retention) -> Result<u64, DbError> {
    let mut sum = repeat(|| jobs_before(desk, keep.jobs.as_secs_f64())).await?;
    if let Some(most) = keep.most_jobs {
        // As an age, so that there is one rule for what may be deleted.
        let oldest = within(age_of_ended(desk, most)).await?;
        if let Some(age) = oldest {
            sum += repeat(|| jobs_before(desk, age)).await?;
        }
    }
    Ok(sum)
}

/// Seconds since the end of the job that is one too many.
async fn age_of_ended(desk: Desk<'_>, most: u64) -> Result<Option<f64>, DbError> {
    let age = sqlx::query_scalar!(
        r#"select extract(epoch from now() - end_time)::float8 as "age!" from jobs where end_time is not null
           order by end_time desc, job_id desc offset $1 limit 1"#,
        i64::try_from(most).unwrap_or(i64::MAX),
    )
    .fetch_optional(desk.pool)
    .await?;
    Ok(age)
}

/// Deletes some jobs that ended at least `seconds` ago. Children of a sweep go when all of it is that old; a job that
/// another one still waits to hear of stays.
async fn jobs_before(desk: Desk<'_>, seconds: f64) -> Result<u64, DbError> {
    let Some(mut tx) = desk.begin().await? else { return Ok(0) };
    let jobs: Vec<Uuid> = sqlx::query_scalar!(
        "select job_id from jobs j where j.end_time <= now() - make_interval(secs => $1)
           and not exists (select 1 from sweeps s where s.sweep_id = j.sweep_id
                           and (s.end_time is null or s.end_time > now() - make_interval(secs => $1)))
           and not exists (select 1 from job_dependencies d where d.after_job_id = j.job_id and not d.settled)
         order by j.end_time, j.job_id limit $2 for update of j skip locked",
        seconds,
        JOBS,
    )
    .fetch_all(&mut *tx)
    .await?;
    if jobs.is_empty() {
        return Ok(0);
    }
    // These have no foreign key that would delete them; in most cases their partition is long gone.
    sqlx::query!("delete from job_events where job_id = any($1)", &jobs).execute(&mut *tx).await?;
    sqlx::query!("delete from metric_points where job_id = any($1)", &jobs).execute(&mut *tx).await?;
    let done = sqlx::query!("delete from jobs where job_id = any($1)", &jobs).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(done.rows_affected())
}

/// Deletes some sweeps that ended at least `keep` ago and have no children any more.
pub(super) async fn sweeps(desk: Desk<'_>, keep: Duration) -> Result<u64, DbError> {
    let old = sqlx::query!(
        "delete from sweeps where sweep_id = any(array(
           select sweep_id from sweeps s where s.end_time <= now() - make_interval(secs => $1)
             and 0 = (select count(*) from jobs j where j.sweep_id = s.sweep_id)
           order by s.end_time limit $2))",
        keep.as_secs_f64(),
        ROWS,
    );
    delete(desk, old).await
}

/// Deletes some workers that have been gone for `keep` and hold nothing.
pub(super) async fn workers(desk: Desk<'_>, keep: Duration) -> Result<u64, DbError> {
    let old = sqlx::query!(
        "delete from workers where worker_id = any(array(
           select worker_id from workers w where w.state = 'GONE' and w.gone_time <= now() - make_interval(secs => $1)
             and not exists (select 1 from places p where p.worker_id = w.worker_id and p.live)
           order by w.gone_time limit $2))",
        keep.as_secs_f64(),
        ROWS,
    );
    delete(desk, old).await
}

/// Deletes some expired checkpoints of jobs that have many: their files are long gone, and the newest of those that stay
/// are what could be mistaken for whole ones.
pub(super) async fn checkpoints(desk: Desk<'_>) -> Result<u64, DbError> {
    let old = sqlx::query!(
        "delete from checkpoints c using (
           select job_id, name from (
             select job_id, name, row_number() over (partition by job_id order by step desc) as age
             from checkpoints where expired) expired
           where age > $1 limit $2) old
         where c.job_id = old.job_id and c.name = old.name and c.expired",
        EXPIRED,
        ROWS,
    );
    delete(desk, old).await
}

/// Deletes what a statement deletes, in a transaction of its own; how many rows.
async fn delete(desk: Desk<'_>, old: Query<'_, Postgres, PgArguments>) -> Result<u64, DbError> {
    let Some(mut tx) = desk.begin().await? else { return Ok(0) };
    let done = old.execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(done.rows_affected())
}
