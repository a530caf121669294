//! What the scheduler sees of the queue, and what it says about the jobs that wait.

use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    convert,
    db::DbError,
    ids::{JobId, TenantId},
};

/// Jobs that one decision looks at; those behind them are looked at when these have started.
const WINDOW: i64 = 1000;
/// Jobs too large for the fleet that get their reason told in one decision.
const TOO_LARGE: i64 = 100;

/// A job that waits.
#[derive(Clone, Debug)]
pub struct QueueEntry {
    /// The job.
    pub job: JobId,
    /// The higher goes first.
    pub priority: i32,
    /// Members that it needs.
    pub min: u32,
    /// Members that it can use.
    pub max: u32,
    /// The kinds of its last gang; empty before the first.
    pub kinds: String,
    /// What it says now.
    pub message: String,
}

/// The head of the queue, by priority and then age: jobs that a fleet of `workers` could hold, and some that it could not.
/// Those of the tenants that are over their budgets are left out.
pub async fn queued(
    pool: &PgPool,
    workers: u32,
    over_budget: &[TenantId],
) -> Result<Vec<QueueEntry>, DbError> {
    let over_budget: Vec<Uuid> = over_budget.iter().map(|tenant| tenant.0).collect();
    let rows = sqlx::query!(
        r#"select job_id as "job_id!", workers_min as "min!", workers_max as "max!", kinds as "kinds!",
                  priority as "priority!",
                  state_message as "message!"
           from (
             (select * from jobs where state = 'QUEUED' and not held and workers_min <= $1 and tenant_id <> all($4)
              order by priority desc, number limit $2)
             union all
             (select * from jobs where state = 'QUEUED' and not held and workers_min > $1 and tenant_id <> all($4)
              order by priority desc, number limit $3)
           ) head order by priority desc, number"#,
        convert::to_i32(workers),
        WINDOW,
        TOO_LARGE,
        &over_budget,
    )
    .fetch_all(pool)
    .await?;
    let entries = rows.into_iter().map(|row| QueueEntry {
        job: JobId(row.job_id),
        priority: row.priority,
        min: convert::to_u32(row.min),
        max: convert::to_u32(row.max),
        kinds: row.kinds,
        message: row.message,
    });
    Ok(entries.collect())
}

/// Says why jobs wait; only written where it changed.
pub async fn explain_all(pool: &PgPool, reasons: &[(JobId, String)]) -> Result<(), DbError> {
    if reasons.is_empty() {
        return Ok(());
    }
    let (jobs, reasons): (Vec<Uuid>, Vec<&str>) =
        reasons.iter().map(|(job, reason)| (job.0, reason.as_str())).unzip();
    // A row that is locked changes just now, and says something else then.
    sqlx::query!(
        "with said as (
           select j.job_id, w.reason from unnest($1::uuid[], $2::text[]) w (job_id, reason)
           join jobs j on j.job_id = w.job_id and j.state = 'QUEUED' and j.state_message <> w.reason
           order by j.job_id for no key update of j skip locked
         ) update jobs j set state_message = said.reason from said where j.job_id = said.job_id and j.state = 'QUEUED'",
        &jobs,
        &reasons as _,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Says of a tenant's jobs why they wait: of those at the head that are not told yet. Returns them.
pub async fn explain_tenant(pool: &PgPool, tenant: TenantId, reason: &str) -> Result<Vec<JobId>, DbError> {
    let told = sqlx::query_scalar!(
        "with untold as (
           select job_id from jobs
           where tenant_id = $1 and state = 'QUEUED' and not held and state_message <> $2
           order by priority desc, number limit $3
         ) update jobs j set state_message = $2, queue_position = null, start_estimate_seconds = null
           from untold u where j.job_id = u.job_id and j.state = 'QUEUED' and not j.held returning j.job_id",
        tenant.0,
        reason,
        WINDOW,
    )
    .fetch_all(pool)
    .await?;
    Ok(told.into_iter().map(JobId).collect())
}

/// How many jobs are queued, and how many run.
pub async fn depth(pool: &PgPool) -> Result<(u64, u64), DbError> {
    let row = sqlx::query!(
        r#"select (select count(*) from jobs where state = 'QUEUED') as "queued!",
                  (select count(*) from jobs where state = 'RUNNING') as "running!""#
    )
    .fetch_one(pool)
    .await?;
    Ok((convert::to_u64(row.queued), convert::to_u64(row.running)))
}
