//! How jobs come into being: stored with their first event, what they ask of the queue, and what they come after.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use lorafleet_proto::v1 as pb;
use sqlx::{PgConnection, PgPool, types::Json};
use uuid::Uuid;

use super::{HeldBy, parse_job_state};
use crate::{
    convert,
    db::DbError,
    events::{self, Event},
    ids::{JobId, TenantId},
    job::JobState,
    quota::{self, AdmitError},
};

/// What CreateJob stores.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// With defaults filled in, and valid: `queue.after` names jobs by their resource names, `tenant` a tenant.
    pub spec: pb::JobSpec,
    /// The client's key of idempotence.
    pub request_id: Option<Uuid>,
}

/// Stores jobs under ids of the caller's choice, all or none; each may come after those before it.
pub async fn create_all(pool: &PgPool, news: &[(JobId, &NewJob)]) -> Result<Vec<JobId>, AdmitError> {
    let mut tx = pool.begin().await?;
    let said = |new: &NewJob| format!("job {} was submitted", new.spec.display_name);
    let saying: Vec<_> = news.iter().map(|(job, new)| (*job, *new, said(new))).collect();
    insert_all(&mut tx, &saying).await?;
    tx.commit().await?;
    Ok(news.iter().map(|(job, _)| *job).collect())
}

/// Whether a job could not be stored because its request_id has a job already.
pub fn is_repeated(error: &AdmitError) -> bool {
    matches!(error, AdmitError::Db(error) if error.unique_violation() == Some("jobs_request_id_key"))
}

/// Whether a job could not be stored because its tenant was deleted at that moment.
pub fn is_tenant_gone(error: &AdmitError) -> bool {
    matches!(error, AdmitError::Db(error) if error.null_violation() == Some("tenant_id"))
}

/// Stores jobs, each with its first event, which says what is beside it, within the caller's transaction. The only way
/// into the queue, so that no submission passes a quota.
pub async fn insert_all(tx: &mut PgConnection, news: &[(JobId, &NewJob, String)]) -> Result<(), AdmitError> {
    let mut limited = BTreeMap::new();
    for (job, new, message) in news {
        if let Some(tenant) = insert_as(tx, *job, new, message).await? {
            *limited.entry(tenant).or_insert(0) += 1;
        }
    }
    quota::admit(tx, &limited).await
}

/// Returns the job's tenant where that has a quota on submissions.
async fn insert_as(
    tx: &mut PgConnection,
    job: JobId,
    new: &NewJob,
    message: &str,
) -> Result<Option<TenantId>, DbError> {
    let workers = new.spec.workers.unwrap_or_default();
    let queue = new.spec.queue.clone().unwrap_or_default();
    let not_before = time(&queue.not_before)?;
    let after = queue.after.iter().map(|name| JobId::from_name(name)).collect::<Result<Vec<_>, _>>();
    let after = after.map_err(|error| DbError::Data(error.to_string()))?;
    let why = HeldBy { after: after.clone(), until: not_before }.to_string();
    let made = sqlx::query!(
        r#"insert into jobs (job_id, request_id, spec, workers_min, workers_max, priority, not_before, deadline,
                           max_run_seconds, selector, retries, held, ready_time, state_message, tenant_id)
         values ($1, $2, $3, $4, $5, $6, $7, $8, nullif($9, 0::bigint), $10, $11, $12, $7, $13,
                 (select tenant_id from tenants where name = $14))
         returning tenant_id, (select t.max_queued is not null or t.max_stored_bytes is not null from tenants t
                               where t.tenant_id = jobs.tenant_id) as "limited!""#,
        job.0,
        new.request_id,
        Json(&new.spec) as _,
        convert::to_i32(workers.min),
        convert::to_i32(workers.max),
        new.spec.priority,
        not_before,
        time(&queue.deadline)?,
        convert::to_i64(queue.max_run_seconds),
        Json(&queue.selector) as _,
        convert::to_i32(queue.retries),
        !why.is_empty(),
        why,
        new.spec.tenant,
    )
    .fetch_one(&mut *tx)
    .await?;
    insert_after(tx, job, &after).await?;
    events::append(tx, job, Event::new("created", message, None)).await?;
    if !why.is_empty() {
        events::append(tx, job, Event::new("held", why, None)).await?;
    }
    Ok(made.limited.then_some(TenantId(made.tenant_id)))
}

/// The others' rows are locked against an end that this job would not hear of.
async fn insert_after(tx: &mut PgConnection, job: JobId, after: &[JobId]) -> Result<(), DbError> {
    if after.is_empty() {
        return Ok(());
    }
    let after: Vec<Uuid> = after.iter().map(|job| job.0).collect();
    let done = sqlx::query!(
        "with others as (select job_id, state from jobs where job_id = any($2) order by job_id for share)
         insert into job_dependencies (job_id, after_job_id, ended)
         select $1, job_id, state in ('SUCCEEDED', 'FAILED', 'CANCELLED') from others",
        job.0,
        &after,
    )
    .execute(tx)
    .await?;
    if done.rows_affected() != after.len() as u64 {
        return Err(DbError::Data(format!("a job that job {job} comes after is gone")));
    }
    Ok(())
}

/// Where jobs stand; those that there are not, or not of this tenant, are left out.
pub async fn states(
    pool: &PgPool,
    jobs: &[JobId],
    tenant: Option<TenantId>,
) -> Result<Vec<(JobId, JobState)>, DbError> {
    let ids: Vec<Uuid> = jobs.iter().map(|job| job.0).collect();
    let rows = sqlx::query!(
        "select job_id, state from jobs where job_id = any($1) and ($2::uuid is null or tenant_id = $2)",
        &ids,
        tenant.map(|tenant| tenant.0),
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(|row| Ok((JobId(row.job_id), parse_job_state(&row.state)?))).collect()
}

fn time(text: &str) -> Result<Option<DateTime<Utc>>, DbError> {
    if text.is_empty() {
        return Ok(None);
    }
    let read =
        DateTime::parse_from_rfc3339(text).map_err(|error| DbError::Data(format!("time {text}: {error}")))?;
    Ok(Some(read.with_timezone(&Utc)))
}
