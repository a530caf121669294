//! What the scheduler sees of the queue, and what it says about the jobs that wait.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
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
/// Jobs that the fleet could not hold are passed over in search of others, up to this many times a tenant's part of the
/// window.
const PASSED: i64 = 4;
/// Of a tenant's part of the window, the jobs of any kind at its head: those that the fleet could not hold are told so.
const UNSIFTED: i64 = 4;
/// Of a tenant's part of the window, its oldest jobs, whatever their priority: waiting raises them.
const OLDEST: i64 = 10;

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
    /// How long it has waited since its submission: its runs are left out, and what it asked to wait.
    pub age: Duration,
    /// How long it will still run, where that is known.
    pub run_estimate: Option<Duration>,
    /// What it says now.
    pub message: String,
}

/// Which of the jobs that wait are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// Workers of the fleet: larger jobs are passed over.
    pub workers: u32,
    /// Selectors that no worker matches: their jobs are passed over.
    pub unmatched: &'a [Value],
    /// About how many tenants there are.
    pub tenants: usize,
    /// Tenants over their budgets: their jobs are left out.
    pub over_budget: &'a [TenantId],
}

/// The head of each tenant's line, by priority and then age, and its oldest jobs, so that no tenant's jobs hide another's;
/// in order of submission. Of those that the fleet could not hold, only those at the head are there. However long the lines
/// are, this reads no more than a few times as many rows as it returns.
pub async fn queued(pool: &PgPool, window: Window<'_>) -> Result<Vec<QueueEntry>, DbError> {
    let over_budget: Vec<Uuid> = window.over_budget.iter().map(|tenant| tenant.0).collect();
    let of_each = (WINDOW / i64::try_from(window.tenants.max(1)).unwrap_or(WINDOW)).max(OF_EACH);
    // A row is looked up with a limit, so that no planner reads all of jobs for it.
    let rows = sqlx::query!(
        r#"select j.job_id, j.tenant_id, j.priority, j.workers_min, j.workers_max, j.kinds, j.base as "base!",
                  j.selector as "selector: Json<BTreeMap<String, String>>", j.state_message,
                  extract(epoch from now() - greatest(j.create_time, j.not_before))::float8 - j.run_seconds as "age!",
                  j.max_run_seconds - j.run_seconds as "run_limit", p.seconds_left as "left?"
           from tenants t
           cross join lateral (
             (select q.job_id from jobs q where q.tenant_id = t.tenant_id and q.state = 'QUEUED' and not q.held
              order by q.priority desc, q.number limit $4)
             union
             (select head.job_id from (
                select q.job_id, q.workers_min, q.selector from jobs q
                where q.tenant_id = t.tenant_id and q.state = 'QUEUED' and not q.held
                order by q.priority desc, q.number limit $5
              ) head where head.workers_min <= $1 and head.selector <> all($3) limit $6)
             union
             (select q.job_id from jobs q where q.tenant_id = t.tenant_id and q.state = 'QUEUED' and not q.held
              order by q.number limit $7)
           ) line
           cross join lateral (select * from jobs k where k.job_id = line.job_id limit 1) j
           left join lateral (
             select m.seconds_left from metric_points m where m.job_id = j.job_id order by m.step desc limit 1
           ) p on j.step > 0
           where t.tenant_id <> all($2) order by j.number"#,
        convert::to_i32(window.workers),
        &over_budget,
        window.unmatched,
        of_each / UNSIFTED,
        if window.workers == 0 { 0 } else { of_each * PASSED },
        of_each,
        of_each / OLDEST,
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
        run_estimate: run_estimate(row.left, row.run_limit),
        message: row.state_message,
    });
    Ok(entries.collect())
}

/// How long a job still runs: as its last point said, if any did, and no longer than it may.
fn run_estimate(said: Option<f64>, limit: Option<f64>) -> Option<Duration> {
    let said = said.filter(|seconds| *seconds > 0.0);
    said.into_iter().chain(limit).map(convert::seconds).min()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_runs_as_long_as_its_last_point_said_and_no_longer_than_it_may() {
        let seconds = |s| Some(Duration::from_secs(s));
        assert_eq!(run_estimate(None, None), None);
        assert_eq!(run_estimate(Some(0.0), None), None, "nothing was measured yet");
        assert_eq!(run_estimate(Some(30.0), Some(20.0)), seconds(20));
        assert_eq!(run_estimate(None, Some(20.0)), seconds(20));
        assert_eq!(run_estimate(Some(30.0), Some(-5.0)), seconds(0), "its time is over");
    }
}
