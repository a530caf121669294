//! How jobs come into being: stored with their first event, what they ask of the queue, and what they come after.

use chrono::{DateTime, SecondsFormat, Utc};
use lorafleet_proto::v1 as pb;
use sqlx::{PgConnection, PgPool, types::Json};
use uuid::Uuid;

use super::by_request_id;
use crate::{
    convert,
    db::DbError,
    events::{self, Event},
    ids::JobId,
    job::JobState,
};

/// What CreateJob stores.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// With defaults filled in, and valid; `queue.after` names jobs by their resource names.
    pub spec: pb::JobSpec,
    /// The client's key of idempotence.
    pub request_id: Option<Uuid>,
}

/// What became of a [`NewJob`].
#[derive(Clone, Debug)]
pub enum Created {
    /// It was stored.
    New(JobId),
    /// Its request_id was used before, for this job.
    Before(JobId, Box<pb::JobSpec>),
}

/// Stores a job and its first event, in one transaction; or finds the one that the same request_id made before.
pub async fn create(pool: &PgPool, new: &NewJob) -> Result<Created, DbError> {
    match (create_all(pool, &[(JobId::new(), new)]).await, new.request_id) {
        (Err(error), Some(request_id)) if is_repeated(&error) => {
            let before = by_request_id(pool, request_id).await?;
            before.map(|(job, spec)| Created::Before(job, Box::new(spec))).ok_or(error)
        }
        (other, _) => other.map(|jobs| Created::New(jobs[0])),
    }
}

/// Stores jobs under ids of the caller's choice, all or none; each may come after those before it.
pub async fn create_all(pool: &PgPool, news: &[(JobId, &NewJob)]) -> Result<Vec<JobId>, DbError> {
    let mut tx = pool.begin().await?;
    for (job, new) in news {
        let message = format!("job {} was submitted", new.spec.display_name);
        insert_as(&mut tx, *job, new, message).await?;
    }
    tx.commit().await?;
    Ok(news.iter().map(|(job, _)| *job).collect())
}

/// Whether a job could not be stored because its request_id has a job already.
pub fn is_repeated(error: &DbError) -> bool {
    error.unique_violation() == Some("jobs_request_id_key")
}

/// Stores a job and its first event, which says this, within the caller's transaction.
pub async fn insert_in(tx: &mut PgConnection, new: &NewJob, message: String) -> Result<JobId, DbError> {
    let job = JobId::new();
    insert_as(tx, job, new, message).await?;
    Ok(job)
}

async fn insert_as(tx: &mut PgConnection, job: JobId, new: &NewJob, message: String) -> Result<(), DbError> {
    let workers = new.spec.workers.unwrap_or_default();
    let queue = new.spec.queue.clone().unwrap_or_default();
    let not_before = time(&queue.not_before)?;
    let why = held_message(not_before, &queue.after);
    sqlx::query!(
        "insert into jobs (job_id, request_id, spec, workers_min, workers_max, priority, not_before, deadline,
                           max_run_seconds, selector, retries, held, ready_time, state_message)
         values ($1, $2, $3, $4, $5, $6, $7, $8, nullif($9, 0::bigint), $10, $11, $12, $7, $13)",
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
    )
    .execute(&mut *tx)
    .await?;
    insert_after(tx, job, &queue.after).await?;
    events::append(tx, job, Event::new("created", message, None)).await?;
    if !why.is_empty() {
        events::append(tx, job, Event::new("held", why, None)).await?;
    }
    Ok(())
}

/// The others' rows are locked against an end that this job would not hear of.
async fn insert_after(tx: &mut PgConnection, job: JobId, after: &[String]) -> Result<(), DbError> {
    if after.is_empty() {
        return Ok(());
    }
    let wrong = |error: crate::ids::NameError| DbError::Data(error.to_string());
    let after: Vec<Uuid> = after
        .iter()
        .map(|name| Ok(JobId::from_name(name).map_err(wrong)?.0))
        .collect::<Result<_, DbError>>()?;
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

/// Where jobs stand; those that there are not are left out.
pub async fn states(pool: &PgPool, jobs: &[JobId]) -> Result<Vec<(JobId, JobState)>, DbError> {
    let ids: Vec<Uuid> = jobs.iter().map(|job| job.0).collect();
    let rows =
        sqlx::query!("select job_id, state from jobs where job_id = any($1)", &ids).fetch_all(pool).await?;
    rows.into_iter().map(|row| Ok((JobId(row.job_id), super::parse_job_state(&row.state)?))).collect()
}

/// Why a job is held at first; nothing where it is not.
fn held_message(not_before: Option<DateTime<Utc>>, after: &[String]) -> String {
    match (not_before, after) {
        (None, []) => String::new(),
        (Some(time), []) => format!("waits until {} (queue.not_before)", clock(time)),
        (None, after) => format!("waits for {} to succeed", after.join(", ")),
        (Some(time), after) => {
            format!("waits for {} to succeed, and until {} (queue.not_before)", after.join(", "), clock(time))
        }
    }
}

fn clock(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn time(text: &str) -> Result<Option<DateTime<Utc>>, DbError> {
    if text.is_empty() {
        return Ok(None);
    }
    let read =
        DateTime::parse_from_rfc3339(text).map_err(|error| DbError::Data(format!("time {text}: {error}")))?;
    Ok(Some(read.with_timezone(&Utc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_job_says_what_it_waits_for() {
        let noon = time("2027-01-31T13:00:00+01:00").unwrap();
        assert_eq!(held_message(None, &[]), "");
        assert_eq!(held_message(noon, &[]), "waits until 2027-01-31T12:00:00Z (queue.not_before)");
        let after = ["jobs/a".to_owned(), "jobs/b".to_owned()];
        assert_eq!(held_message(None, &after), "waits for jobs/a, jobs/b to succeed");
    }
}
