//! Points of jobs that ended some time ago: fewer of them, in the same shape.
//!
//! Steps are cut into at most 600 buckets; of each stay its lowest and highest loss and its last point, and every
//! evaluation. So a curve that is drawn from what is left has the same extremes at the same steps.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Desk, MOST_BATCHES};
use crate::db::{DbError, within};

/// A job with fewer points is left alone.
const ENOUGH: i64 = 2000;
/// Buckets that a job's steps are cut into, at most.
const BUCKETS: i64 = 600;
/// Steps that one transaction goes through, about.
const STEPS: i64 = 20_000;
/// Jobs that are looked at in one transaction.
const JOBS: i64 = 500;

/// An ended job on the way through them, in the order of their ends.
struct Stop {
    job: Uuid,
    end_time: DateTime<Utc>,
    /// It has too many points; its last step.
    last: Option<i64>,
}

/// Thins the points of jobs that ended `rest` ago, from where the walk through them stands. Gives how many were deleted.
pub(super) async fn points(desk: Desk<'_>, rest: Duration) -> Result<u64, DbError> {
    let mut deleted = 0;
    for _ in 0..MOST_BATCHES {
        let stops = within(next(desk, rest)).await?;
        let Some(end) = stops.last() else { break };
        for stop in &stops {
            let Some(last) = stop.last else { continue };
            deleted += thin(desk, stop.job, last).await?;
        }
        within(advance(desk, end, &stops)).await?;
    }
    Ok(deleted)
}

async fn next(desk: Desk<'_>, rest: Duration) -> Result<Vec<Stop>, DbError> {
    // Done again after a failure: thinning what is thin changes nothing.
    let stops = sqlx::query_as!(
        Stop,
        r#"select j.job_id as job, j.end_time as "end_time!", case when p.many then p.last end as last
           from housekeeping h
           join jobs j on (j.end_time, j.job_id) > (h.thinned_time, h.thinned_job)
           cross join lateral (
             select count(*) > $2::bigint as many,
                    (select max(step) from metric_points l where l.job_id = j.job_id) as last
             from (select 1 from metric_points m where m.job_id = j.job_id limit $2::bigint + 1) few) p
           where j.end_time <= now() - make_interval(secs => $1)
           order by j.end_time, j.job_id limit $3"#,
        rest.as_secs_f64(),
        ENOUGH,
        JOBS,
    )
    .fetch_all(desk.pool)
    .await?;
    Ok(stops)
}

async fn thin(desk: Desk<'_>, job: Uuid, last: i64) -> Result<u64, DbError> {
    let width = last / BUCKETS + 1;
    let stride = width * (STEPS / width).max(1);
    let (mut deleted, mut from) = (0, 0);
    while from <= last {
        deleted += within(async {
            let Some(mut tx) = desk.begin().await? else { return Ok(0) };
            let deleted = thin_some(&mut tx, job, width, from..from + stride).await?;
            tx.commit().await?;
            Ok::<_, DbError>(deleted)
        })
        .await?;
        from += stride;
    }
    Ok(deleted)
}

async fn thin_some(
    tx: &mut PgConnection,
    job: Uuid,
    width: i64,
    steps: std::ops::Range<i64>,
) -> Result<u64, DbError> {
    let done = sqlx::query!(
        // The steps as an array, so that they are looked up by the key however little Postgres knows of the table.
        "delete from metric_points where job_id = $1 and step = any(array(
           select step from (
             select step, eval_loss is null
                      and row_number() over (partition by step / $2 order by loss, step) > 1
                      and row_number() over (partition by step / $2 order by loss desc, step) > 1
                      and row_number() over (partition by step / $2 order by step desc) > 1 as spare
             from metric_points where job_id = $1 and step >= $3 and step < $4) judged
           where spare))",
        job,
        width,
        steps.start,
        steps.end,
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected())
}

/// The walk has come to `end`. Nobody adopts a manifest for these jobs any more, so what guards against it can go.
async fn advance(desk: Desk<'_>, end: &Stop, stops: &[Stop]) -> Result<(), DbError> {
    let Some(mut tx) = desk.begin().await? else { return Ok(()) };
    let jobs: Vec<Uuid> = stops.iter().map(|stop| stop.job).collect();
    sqlx::query!("delete from checkpoints where job_id = any($1) and expired", &jobs)
        .execute(&mut *tx)
        .await?;
    sqlx::query!("update housekeeping set thinned_time = $1, thinned_job = $2", end.end_time, end.job)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(())
}
