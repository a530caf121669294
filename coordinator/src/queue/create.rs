//! How jobs come into being: stored with their first event, what they ask of the queue, and what they come after.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use lorafleet_proto::v1 as pb;
use sqlx::{PgConnection, PgExecutor, PgPool, types::Json};
use uuid::Uuid;

use super::{HeldBy, parse_job_state};
use crate::{
    convert,
    db::{DbError, text},
    events,
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
    let saying: Vec<_> = news.iter().map(|(job, new)| (*job, *new, submitted(new))).collect();
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
    admitted(tx, news).await.map(drop)
}

async fn admitted(tx: &mut PgConnection, news: &[(JobId, &NewJob, String)]) -> Result<Vec<Made>, AdmitError> {
    let mut columns = Columns::default();
    let mut links = Vec::new();
    for (job, new, message) in news {
        let after = after(new)?;
        columns.push(*job, new, &after, message)?;
        links.push((*job, after));
    }
    let made = insert(&mut *tx, &columns, Limited::Too).await?;
    for (job, after) in &links {
        insert_after(tx, *job, after).await?;
    }
    let mut limited = BTreeMap::new();
    for tenant in made.iter().filter_map(|made| made.limited) {
        *limited.entry(tenant).or_insert(0) += 1;
    }
    quota::admit(tx, &limited).await?;
    Ok(made)
}

/// Stores jobs that come after no others, in one statement; each by itself where one of them cannot be stored, or where
/// its tenant has a quota on submissions. Says when each was stored.
pub async fn create_apart(
    pool: &PgPool,
    news: &[(JobId, NewJob)],
) -> Result<Vec<Result<DateTime<Utc>, AdmitError>>, DbError> {
    let made = match create_together(pool, news).await {
        Err(error) if error.is_transient() => return Err(error),
        Err(_) => HashMap::new(),
        Ok(made) => made,
    };
    let mut results = Vec::with_capacity(news.len());
    for new in news {
        results.push(match made.get(&new.0.0) {
            Some(time) => Ok(*time),
            None => create_alone(pool, new).await,
        });
    }
    Ok(results)
}

async fn create_together(
    pool: &PgPool,
    news: &[(JobId, NewJob)],
) -> Result<HashMap<Uuid, DateTime<Utc>>, DbError> {
    let mut columns = Columns::default();
    for (job, new) in news {
        columns.push(*job, new, &[], &submitted(new))?;
    }
    let made = insert(pool, &columns, Limited::Not).await?;
    Ok(made.into_iter().map(|made| (made.job, made.time)).collect())
}

async fn create_alone(pool: &PgPool, (job, new): &(JobId, NewJob)) -> Result<DateTime<Utc>, AdmitError> {
    let mut tx = pool.begin().await?;
    let made = admitted(&mut tx, &[(*job, new, submitted(new))]).await?;
    tx.commit().await?;
    let made = made.first().ok_or_else(|| DbError::Data("a job that was not stored, nor refused".to_owned()));
    Ok(made?.time)
}

fn submitted(new: &NewJob) -> String {
    format!("job {} was submitted", new.spec.display_name)
}

/// The jobs that one comes after.
fn after(new: &NewJob) -> Result<Vec<JobId>, DbError> {
    let names = new.spec.queue.iter().flat_map(|queue| &queue.after);
    let after = names.map(|name| JobId::from_name(name)).collect::<Result<_, _>>();
    after.map_err(|error| DbError::Data(error.to_string()))
}

/// Why a job that was just stored is held, if it is; this is what it says then.
pub fn held_at_first(new: &NewJob) -> Result<String, DbError> {
    let until = new.spec.queue.as_ref().map_or(Ok(None), |queue| time(&queue.not_before))?;
    Ok(HeldBy { after: after(new)?, until }.to_string())
}

/// Jobs as the arrays that one statement stores, one entry a job.
#[derive(Default)]
struct Columns<'a> {
    job: Vec<Uuid>,
    request: Vec<Option<Uuid>>,
    spec: Vec<Json<&'a pb::JobSpec>>,
    min: Vec<i32>,
    max: Vec<i32>,
    priority: Vec<i32>,
    not_before: Vec<Option<DateTime<Utc>>>,
    deadline: Vec<Option<DateTime<Utc>>>,
    max_run_seconds: Vec<i64>,
    selector: Vec<Json<BTreeMap<String, String>>>,
    retries: Vec<i32>,
    tenant: Vec<&'a str>,
    held: Vec<String>,
    message: Vec<String>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, job: JobId, new: &'a NewJob, after: &[JobId], message: &str) -> Result<(), DbError> {
        let workers = new.spec.workers.unwrap_or_default();
        let queue = new.spec.queue.clone().unwrap_or_default();
        let not_before = time(&queue.not_before)?;
        self.deadline.push(time(&queue.deadline)?);
        self.held.push(HeldBy { after: after.to_vec(), until: not_before }.to_string());
        self.not_before.push(not_before);
        self.job.push(job.0);
        self.request.push(new.request_id);
        self.spec.push(Json(&new.spec));
        self.min.push(convert::to_i32(workers.min));
        self.max.push(convert::to_i32(workers.max));
        self.priority.push(new.spec.priority);
        self.max_run_seconds.push(convert::to_i64(queue.max_run_seconds));
        self.selector.push(Json(queue.selector));
        self.retries.push(convert::to_i32(queue.retries));
        self.tenant.push(&new.spec.tenant);
        self.message.push(text(message, events::MAX_MESSAGE));
        Ok(())
    }
}

/// Whether jobs of tenants with a quota on submissions are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limited {
    /// They are left out.
    Not,
    /// They are stored; the caller asks the quota before it commits.
    Too,
}

/// A job that was stored.
struct Made {
    job: Uuid,
    time: DateTime<Utc>,
    /// Its tenant, where that has a quota on submissions.
    limited: Option<TenantId>,
}

/// Stores jobs in this order, each with its first events.
async fn insert(
    executor: impl PgExecutor<'_>,
    columns: &Columns<'_>,
    limited: Limited,
) -> Result<Vec<Made>, DbError> {
    let rows = sqlx::query!(
        r#"with new as (
           select n.*, t.tenant_id, coalesce(t.max_queued is not null or t.max_stored_bytes is not null, false) as limited
           from unnest($1::uuid[], $2::uuid[], $3::jsonb[], $4::int[], $5::int[], $6::int[],
             $7::timestamptz[], $8::timestamptz[], $9::bigint[], $10::jsonb[], $11::int[], $12::text[], $13::text[], $14::text[])
             with ordinality n (job_id, request_id, spec, workers_min, workers_max, priority, not_before, deadline,
               max_run_seconds, selector, retries, tenant, why, message, place)
           left join tenants t on t.name = n.tenant
         ), made as (
           insert into jobs (job_id, request_id, spec, workers_min, workers_max, priority, not_before, deadline,
                             max_run_seconds, selector, retries, held, ready_time, state_message, tenant_id, last_event)
           select job_id, request_id, spec, workers_min, workers_max, priority, not_before, deadline,
                  nullif(max_run_seconds, 0), selector, retries, why <> '', not_before, why,
                  tenant_id, case when why <> '' then 2 else 1 end
           from new where $15 or not limited order by place
           returning job_id, create_time
         ), told as (
           insert into job_events (job_id, number, kind, message)
           select job_id, 1, 'created', message from new where $15 or not limited
           union all select job_id, 2, 'held', why from new where why <> '' and ($15 or not limited)
         ) select m.job_id, m.create_time, case when n.limited then n.tenant_id end as limited
           from made m join new n on n.job_id = m.job_id"#,
        &columns.job,
        &columns.request as _,
        &columns.spec as _,
        &columns.min,
        &columns.max,
        &columns.priority,
        &columns.not_before as _,
        &columns.deadline as _,
        &columns.max_run_seconds,
        &columns.selector as _,
        &columns.retries,
        &columns.tenant as _,
        &columns.held,
        &columns.message,
        limited == Limited::Too,
    )
    .fetch_all(executor)
    .await?;
    let made = |row: (Uuid, DateTime<Utc>, Option<Uuid>)| Made {
        job: row.0,
        time: row.1,
        limited: row.2.map(TenantId),
    };
    Ok(rows.into_iter().map(|row| made((row.job_id, row.create_time, row.limited))).collect())
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
