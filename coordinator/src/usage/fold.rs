//! Counting: what ended or was done since the last time goes into hours and costs, and is marked, in one transaction.

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::db::DbError;

/// Places, and checkpoints, that one transaction counts.
const BATCH: i64 = 2000;
/// One coordinator counts at a time. Postgres lets go of it with the transaction.
const LOCK: i64 = 0x6c6f_7261_7573_6167;

/// Counts a batch. True: there is more to count.
pub async fn fold(pool: &PgPool) -> Result<bool, DbError> {
    let mut tx = pool.begin().await?;
    let mine = sqlx::query_scalar!(r#"select pg_try_advisory_xact_lock($1) as "mine!""#, LOCK)
        .fetch_one(&mut *tx)
        .await?;
    if !mine {
        return Ok(false);
    }
    let places = places(&mut tx).await?;
    points(&mut tx, &places.jobs).await?;
    let written = checkpoints(&mut tx).await?;
    tx.commit().await?;
    Ok(places.count >= BATCH || written >= BATCH)
}

/// What was counted of the places.
struct Places {
    count: i64,
    jobs: Vec<Uuid>,
}

/// The time of places that ended.
async fn places(tx: &mut PgConnection) -> Result<Places, DbError> {
    let row = sqlx::query!(
        r#"with ended as (
             select job_id, attempt, place from places where not counted and not live order by job_id limit $1
           ), counted as (
             update places p set counted = true from ended e
             where p.job_id = e.job_id and p.attempt = e.attempt and p.place = e.place and not p.live and not p.counted
             returning p.job_id, p.start_time, p.end_time
           ), parts as (
             select c.job_id, j.tenant_id, part.hour, part.seconds
             from counted c join jobs j on j.job_id = c.job_id
             cross join lateral hour_parts(c.start_time, c.end_time) part
           ), hours as (
             insert into usage_hours (tenant_id, hour, worker_seconds)
             select tenant_id, hour, sum(seconds) from parts group by tenant_id, hour
             on conflict (tenant_id, hour) do update
               set worker_seconds = usage_hours.worker_seconds + excluded.worker_seconds
           ), costs as (
             insert into job_costs (job_id, worker_seconds)
             select job_id, sum(seconds) from parts group by job_id
             on conflict (job_id) do update set worker_seconds = job_costs.worker_seconds + excluded.worker_seconds
           )
           select count(*) as "count!", coalesce(array_agg(distinct job_id), '{}') as "jobs!" from counted"#,
        BATCH,
    )
    .fetch_one(tx)
    .await?;
    Ok(Places { count: row.count, jobs: row.jobs })
}

/// The tokens of steps that were taken by jobs that hold workers, and by those whose places were counted just now: a
/// step is reported while its job holds a place, so nothing comes after that. A step counts once, also where it was
/// taken again after a loss.
async fn points(tx: &mut PgConnection, ended: &[Uuid]) -> Result<(), DbError> {
    sqlx::query!(
        "with due as (
           select unnest($1::uuid[]) as job_id union select job_id from places where not counted
         ), news as (
           select d.job_id, j.tenant_id, n.step, n.tokens, n.tokens * j.flops_per_token as flops
           from due d join jobs j on j.job_id = d.job_id left join job_costs c on c.job_id = d.job_id
           cross join lateral (
             select max(p.step) as step, coalesce(sum(p.tokens), 0)::bigint as tokens from metric_points p
             where p.job_id = d.job_id and p.step > coalesce(c.counted_step, -1)
           ) n where n.step is not null
         ), costs as (
           insert into job_costs (job_id, tokens, flops, counted_step) select job_id, tokens, flops, step from news
           on conflict (job_id) do update set tokens = job_costs.tokens + excluded.tokens,
             flops = job_costs.flops + excluded.flops, counted_step = excluded.counted_step
         )
         insert into usage_hours (tenant_id, hour, tokens, flops)
         select tenant_id, date_trunc('hour', now(), 'UTC'), sum(tokens)::bigint, sum(flops) from news
         where tokens > 0 group by tenant_id
         on conflict (tenant_id, hour) do update
           set tokens = usage_hours.tokens + excluded.tokens, flops = usage_hours.flops + excluded.flops",
        ended,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The bytes of checkpoints that were written.
async fn checkpoints(tx: &mut PgConnection) -> Result<i64, DbError> {
    let written = sqlx::query_scalar!(
        r#"with due as (
             select job_id, name from checkpoints where not counted order by job_id limit $1
           ), written as (
             update checkpoints c set counted = true from due d where c.job_id = d.job_id and c.name = d.name and not c.counted
             returning c.job_id, c.tenant_id, c.bytes, c.create_time
           ), hours as (
             insert into usage_hours (tenant_id, hour, bytes)
             select tenant_id, date_trunc('hour', create_time, 'UTC'), sum(bytes)::bigint from written group by 1, 2
             on conflict (tenant_id, hour) do update set bytes = usage_hours.bytes + excluded.bytes
           ), costs as (
             insert into job_costs (job_id, bytes) select job_id, sum(bytes)::bigint from written group by job_id
             on conflict (job_id) do update set bytes = job_costs.bytes + excluded.bytes
           )
           select count(*) as "count!" from written"#,
        BATCH,
    )
    .fetch_one(tx)
    .await?;
    Ok(written)
}
