//! What the scheduler sees of the queue, and what it says about the jobs that wait.

use std::{collections::BTreeMap, time::Duration};

use sqlx::{PgPool, types::Json};
use uuid::Uuid;

use crate::{
    convert,
    db::DbError,
    ids::{JobId, TenantId},
};

/// Jobs that one decision looks at, of all tenants together; those behind them are looked at when these have started.
const WINDOW: i64 = 1000;
/// At least so many are looked at of each tenant.
const OF_EACH: i64 = 50;
/// Jobs too large for the fleet that get their reason told in one decision, of each tenant.
const TOO_LARGE: i64 = 100;
/// The oldest of all are looked at, whatever their priority: waiting raises them.
const OLDEST: i64 = 100;

/// A job that waits.
#[derive(Clone, Debug)]
pub struct QueueEntry {
    /// The job.
    pub job: JobId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The higher goes first.
    pub priority: i32,
    /// Members that it needs.
    pub min: u32,
    /// Members that it can use.
    pub max: u32,
    /// The kinds of its last gang; empty before the first.
    pub kinds: String,
    /// Labels that its workers must have.
    pub selector: BTreeMap<String, String>,
    /// Its base, as its spec names it.
    pub base: String,
    /// Time since its submission.
    pub age: Duration,
    /// How long it may still run, where its spec says so.
    pub run_limit: Option<Duration>,
    /// What it says now.
    pub message: String,
}

/// The head of each tenant's line, by priority and then age, oldest first: jobs that a fleet of `workers` could hold, and
/// some that it could not; so that no tenant's jobs hide another's. Those of the tenants that are over their budgets are
/// left out. `tenants`: about how many tenants there are.
pub async fn queued(
    pool: &PgPool,
    workers: u32,
    tenants: usize,
    over_budget: &[TenantId],
) -> Result<Vec<QueueEntry>, DbError> {
    let over_budget: Vec<Uuid> = over_budget.iter().map(|tenant| tenant.0).collect();
    let of_each = (WINDOW / i64::try_from(tenants.max(1)).unwrap_or(WINDOW)).max(OF_EACH);
    let rows = sqlx::query!(
        r#"with line as (
             select head.job_id from tenants t cross join lateral (
               (select job_id from jobs where tenant_id = t.tenant_id and state = 'QUEUED' and not held
                  and workers_min <= $1 order by priority desc, number limit $2)
               union all
               (select job_id from jobs where tenant_id = t.tenant_id and state = 'QUEUED' and not held
                  and workers_min > $1 order by priority desc, number limit $3)
             ) head where t.tenant_id <> all($4)
             union
             (select job_id from jobs where state = 'QUEUED' and not held and tenant_id <> all($4)
              order by number limit $5)
           )
           select j.job_id, j.tenant_id, j.priority, j.workers_min, j.workers_max, j.kinds, j.base as "base!",
                  j.selector as "selector: Json<BTreeMap<String, String>>", j.state_message,
                  extract(epoch from now() - j.create_time)::float8 as "age!",
                  j.max_run_seconds - j.run_seconds as "run_limit"
           from jobs j where j.job_id = any(array(select job_id from line)) order by j.number"#,
        convert::to_i32(workers),
        of_each,
        TOO_LARGE,
        &over_budget,
        OLDEST,
    )
    .fetch_all(pool)
    .await?;
    let entries = rows.into_iter().map(|row| QueueEntry {
        job: JobId(row.job_id),
        tenant: TenantId(row.tenant_id),
        priority: row.priority,
        min: convert::to_u32(row.workers_min),
        max: convert::to_u32(row.workers_max),
        kinds: row.kinds,
        selector: row.selector.0,
        base: row.base,
        age: convert::seconds(row.age),
        run_limit: row.run_limit.map(convert::seconds),
        message: row.state_message,
    });
    Ok(entries.collect())
}

/// What the scheduler says about a job that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The job.
    pub job: JobId,
    /// Why it waits, where it stands, and when it may start: one sentence.
    pub words: String,
    /// Its place in the queue, from 1.
    pub position: u32,
    /// When it may start, from now, where that is known.
    pub estimate: Option<Duration>,
}

/// Says of jobs why they wait, in one statement.
pub async fn explain(pool: &PgPool, said: &[Said]) -> Result<(), DbError> {
    if said.is_empty() {
        return Ok(());
    }
    let jobs: Vec<Uuid> = said.iter().map(|said| said.job.0).collect();
    let words: Vec<&str> = said.iter().map(|said| said.words.as_str()).collect();
    let positions: Vec<i32> = said.iter().map(|said| convert::to_i32(said.position)).collect();
    let estimates: Vec<Option<i64>> =
        said.iter().map(|said| said.estimate.map(|estimate| convert::to_i64(estimate.as_secs()))).collect();
    // A row that is locked changes just now, and says something else then.
    sqlx::query!(
        "with said as (
           select j.job_id, s.words, s.position, s.estimate
           from unnest($1::uuid[], $2::text[], $3::int[], $4::bigint[]) s (job_id, words, position, estimate)
           join jobs j on j.job_id = s.job_id and j.state = 'QUEUED' and not j.held
           order by j.job_id for no key update of j skip locked
         ) update jobs j set state_message = s.words, queue_position = s.position, start_estimate_seconds = s.estimate
           from said s where j.job_id = s.job_id and j.state = 'QUEUED'",
        &jobs,
        &words as _,
        &positions,
        &estimates as _,
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
