//! What keeps jobs from starting or going on: giving way, times, retries, and other jobs.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use lorafleet_proto::v1 as pb;
use sqlx::{PgConnection, PgPool, types::Json};

use super::jobs::parse_state;
use crate::{
    convert,
    db::{DbError, text},
    ids::JobId,
    job::{JobState, Phase, Yielding},
};

/// Jobs that one look takes up; those behind them are taken up by the next.
const BATCH: i64 = 200;
/// Longest message that is kept, in bytes.
const MAX_MESSAGE: usize = 4096;

/// A job whose time is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// The job.
    pub job: JobId,
    /// Only a running job is; nothing follows when it has stopped meanwhile.
    pub only_running: bool,
    /// What its user reads.
    pub message: String,
}

/// Another job that ended.
#[derive(Clone, Debug)]
pub struct EndedDependency {
    /// The other job.
    pub job: JobId,
    /// What people call it.
    pub display_name: String,
    /// How it ended.
    pub state: JobState,
}

/// What becomes of a job when its workers have left. The caller holds its lock.
pub async fn yielding(tx: &mut PgConnection, job: JobId) -> Result<Option<Yielding>, DbError> {
    let yielding =
        sqlx::query_scalar!("select yielding from jobs where job_id = $1", job.0).fetch_optional(tx).await?;
    yielding.flatten().as_deref().map(parse_yielding).transpose()
}

pub(super) fn parse_yielding(yielding: &str) -> Result<Yielding, DbError> {
    Yielding::parse(yielding).ok_or_else(|| DbError::Data(format!("yielding {yielding}")))
}

/// Writes down what becomes of a running job when its workers have left, and what it says until then. The caller holds
/// its lock.
pub async fn set_yielding(
    tx: &mut PgConnection,
    job: JobId,
    yielding: Option<Yielding>,
    message: &str,
) -> Result<(), DbError> {
    sqlx::query!(
        "update jobs set yielding = $2, state_message = $3 where job_id = $1 and state = 'RUNNING'",
        job.0,
        yielding.map(Yielding::as_str),
        text(message, MAX_MESSAGE),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Counts a preemption. The caller holds the job's lock.
pub async fn record_preemption(tx: &mut PgConnection, job: JobId) -> Result<(), DbError> {
    sqlx::query!("update jobs set preemptions = preemptions + 1 where job_id = $1", job.0)
        .execute(tx)
        .await?;
    Ok(())
}

/// How many tries a job had after failures of its own, and how many it may have. The caller holds its lock.
pub async fn retries(tx: &mut PgConnection, job: JobId) -> Result<(u32, u32), DbError> {
    let row =
        sqlx::query!("select retries_used, retries from jobs where job_id = $1", job.0).fetch_one(tx).await?;
    Ok((convert::to_u32(row.retries_used), convert::to_u32(row.retries)))
}

/// Counts a retry, and holds the job back for a while. The caller holds its lock.
pub async fn record_retry(tx: &mut PgConnection, job: JobId, pause: Duration) -> Result<(), DbError> {
    sqlx::query!(
        "update jobs set retries_used = retries_used + 1, held = true,
                ready_time = greatest(ready_time, now() + make_interval(secs => $2)) where job_id = $1",
        job.0,
        pause.as_secs_f64(),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Holds a queued job again whose time has not come, or that still comes after others. The caller holds its lock.
pub async fn hold_if_needed(tx: &mut PgConnection, job: JobId) -> Result<(), DbError> {
    let why = held_by(&mut *tx, job).await?.to_string();
    sqlx::query!(
        "update jobs set held = $2 <> '', state_message = $2 where job_id = $1 and state = 'QUEUED'",
        job.0,
        why,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// What holds a job back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldBy {
    /// The jobs that it comes after and that have not succeeded yet.
    pub after: Vec<JobId>,
    /// It does not start before.
    pub until: Option<DateTime<Utc>>,
}

/// What holds a job back now.
pub async fn held_by(tx: &mut PgConnection, job: JobId) -> Result<HeldBy, DbError> {
    let row = sqlx::query!(
        r#"select case when ready_time > now() then ready_time end as until,
                  array(select d.after_job_id from job_dependencies d where d.job_id = $1 and not d.settled
                        order by d.after_job_id) as "after!"
           from jobs where job_id = $1"#,
        job.0,
    )
    .fetch_optional(tx)
    .await?;
    let held = row.map(|row| HeldBy { after: row.after.into_iter().map(JobId).collect(), until: row.until });
    Ok(held.unwrap_or_default())
}

impl std::fmt::Display for HeldBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<String> = self.after.iter().map(|job| job.name()).collect();
        let until = self.until.map(|time| time.to_rfc3339_opts(SecondsFormat::Secs, true));
        match (names.as_slice(), until) {
            ([], None) => Ok(()),
            ([], Some(time)) => write!(f, "does not start before {time}"),
            (names, None) => write!(f, "waits for {} to succeed", names.join(", ")),
            (names, Some(time)) => {
                write!(f, "waits for {} to succeed, and does not start before {time}", names.join(", "))
            }
        }
    }
}

/// Where a job stands, beside its state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Queued, but not to be started yet.
    pub held: bool,
    /// Its workers were all asked to leave.
    pub yielding: bool,
    /// It has ended.
    pub is_over: bool,
    /// Its place in the queue, as the scheduler last said.
    pub position: Option<u32>,
    /// Seconds until it may start, as the scheduler last said.
    pub start_estimate_seconds: Option<u64>,
    /// How far its live or last attempt has come.
    pub phase: Option<Phase>,
}

/// Where a job stands.
pub async fn standing(tx: &mut PgConnection, job: JobId) -> Result<Option<Standing>, DbError> {
    let row = sqlx::query!(
        r#"select j.held, j.yielding is not null as "yielding!", j.end_time is not null as "is_over!",
                  j.queue_position, j.start_estimate_seconds, a.phase as "phase?"
           from jobs j left join attempts a on a.job_id = j.job_id and a.attempt = j.attempt where j.job_id = $1"#,
        job.0,
    )
    .fetch_optional(tx)
    .await?;
    Ok(row.map(|row| Standing {
        held: row.held,
        yielding: row.yielding,
        is_over: row.is_over,
        position: row.queue_position.map(convert::to_u32),
        start_estimate_seconds: row.start_estimate_seconds.map(convert::to_u64),
        phase: row.phase.as_deref().and_then(Phase::parse),
    }))
}

/// Held jobs whose time has come and that come after no others any more.
pub async fn due(pool: &PgPool) -> Result<Vec<JobId>, DbError> {
    let jobs = sqlx::query_scalar!(
        "select job_id from jobs j where state = 'QUEUED' and held and ready_time <= now()
           and not exists (select 1 from job_dependencies d where d.job_id = j.job_id and not d.settled)
         order by ready_time limit $1",
        BATCH,
    )
    .fetch_all(pool)
    .await?;
    Ok(jobs.into_iter().map(JobId).collect())
}

/// Holds a job no more. False: it was not held.
pub async fn release(tx: &mut PgConnection, job: JobId) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "update jobs set held = false, state_message = '' where job_id = $1 and state = 'QUEUED' and held",
        job.0
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A job that comes after no others any more is due, unless its time has not come. The caller holds its lock.
pub async fn come_due(tx: &mut PgConnection, job: JobId) -> Result<(), DbError> {
    sqlx::query!(
        "update jobs j set ready_time = coalesce(ready_time, now()) where job_id = $1
           and not exists (select 1 from job_dependencies d where d.job_id = $1 and not d.settled)",
        job.0,
    )
    .execute(&mut *tx)
    .await?;
    let why = held_by(&mut *tx, job).await?.to_string();
    sqlx::query!(
        "update jobs set state_message = $2 where job_id = $1 and state = 'QUEUED' and held",
        job.0,
        why
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Jobs that come after others which ended, where no consequence was drawn yet.
pub async fn unsettled(pool: &PgPool) -> Result<Vec<JobId>, DbError> {
    let jobs = sqlx::query_scalar!(
        "select distinct job_id from job_dependencies where ended and not settled limit $1",
        BATCH,
    )
    .fetch_all(pool)
    .await?;
    Ok(jobs.into_iter().map(JobId).collect())
}

/// Takes up the ends of what a job comes after. The caller holds its lock.
pub async fn settle_dependencies(tx: &mut PgConnection, job: JobId) -> Result<Vec<EndedDependency>, DbError> {
    let rows = sqlx::query!(
        r#"update job_dependencies d set settled = true from jobs o
           where d.job_id = $1 and d.ended and not d.settled and o.job_id = d.after_job_id
           returning o.job_id, o.state, o.spec as "spec: Json<pb::JobSpec>""#,
        job.0,
    )
    .fetch_all(tx)
    .await?;
    let ended = rows.into_iter().map(|row| {
        Ok(EndedDependency {
            job: JobId(row.job_id),
            display_name: row.spec.0.display_name,
            state: parse_state(&row.state)?,
        })
    });
    ended.collect()
}

/// Jobs that have not ended by their deadline, and running ones that run for too long.
pub async fn overdue(pool: &PgPool) -> Result<Vec<Overdue>, DbError> {
    let late = sqlx::query!(
        r#"select job_id, deadline as "deadline!" from jobs
           where state in ('QUEUED', 'RUNNING', 'PAUSED') and deadline is not null and deadline <= now()
           order by deadline limit $1"#,
        BATCH,
    )
    .fetch_all(pool)
    .await?;
    let long = sqlx::query!(
        r#"select j.job_id, j.max_run_seconds as "max!" from jobs j
           join attempts a on a.job_id = j.job_id and a.attempt = j.attempt
           where j.state = 'RUNNING' and j.max_run_seconds is not null
             and j.run_seconds + extract(epoch from now() - a.start_time)::float8 > j.max_run_seconds
           limit $1"#,
        BATCH,
    )
    .fetch_all(pool)
    .await?;
    let late = late.into_iter().map(|row| Overdue {
        job: JobId(row.job_id),
        only_running: false,
        message: format!(
            "had not ended by its deadline, {} (queue.deadline)",
            row.deadline.to_rfc3339_opts(SecondsFormat::Secs, true)
        ),
    });
    let long = long.into_iter().map(|row| Overdue {
        job: JobId(row.job_id),
        only_running: true,
        message: format!(
            "ran for longer than {} s (queue.max_run_seconds); its last checkpoint is kept",
            row.max
        ),
    });
    Ok(late.chain(long).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_a_job_is_one_sentence() {
        let (a, until) = (JobId::new(), DateTime::from_timestamp(1_800_000_000, 0));
        assert_eq!(HeldBy::default().to_string(), "");
        assert_eq!(HeldBy { after: vec![], until }.to_string(), "does not start before 2027-01-15T08:00:00Z");
        let both = HeldBy { after: vec![a], until }.to_string();
        assert!(both.starts_with(&format!("waits for jobs/{a} to succeed, and does not")), "{both}");
    }
}
