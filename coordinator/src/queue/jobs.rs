//! Jobs: stored, read, locked by fence, and moved through the state machine.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use lorafleet_proto::v1 as pb;
use sqlx::{PgConnection, PgPool, types::Json};
use uuid::Uuid;

use crate::{
    convert,
    db::{DbError, text},
    ids::{Fence, JobId, SweepId, TenantId},
    job::{JobState, Phase, Transition, Yielding},
    points,
};

/// Longest state message that is kept, in bytes.
const MAX_STATE_MESSAGE: usize = 4096;

/// A job's row.
#[derive(Clone, Debug)]
pub struct JobRow {
    job_id: Uuid,
    /// Order of submission, the key of pages.
    pub number: i64,
    spec: Json<pb::JobSpec>,
    state: String,
    state_message: String,
    create_time: DateTime<Utc>,
    start_time: Option<DateTime<Utc>>,
    end_time: Option<DateTime<Utc>>,
    step: i64,
    total_steps: i64,
    attempt: i32,
    generation: i32,
    world_size: i32,
    infrastructure_failures: i32,
    retries_used: i32,
    preemptions: i32,
    run_seconds: f64,
    sweep_id: Option<Uuid>,
    last_event: i64,
    result: Option<Json<pb::JobResult>>,
}

/// A running job whose row this transaction holds.
#[derive(Clone, Debug)]
pub struct Live {
    /// The job.
    pub job: JobId,
    /// Its fence.
    pub fence: Fence,
    /// Where its attempt is.
    pub phase: Phase,
    /// Members that it needs to start.
    pub min: u32,
    /// The kinds of its last generation's workers, sorted; empty before the first.
    pub kinds: String,
    /// The greatest step that a member held when the generation was opened.
    pub start_step: u64,
    /// The last finished step of the job.
    pub step: u64,
    /// The job's last finished step when the attempt was made.
    pub steps_before: u64,
    /// See [`pb::Job::infrastructure_failures`].
    pub infrastructure_failures: u32,
    /// Why the attempt is closing, if it is.
    pub message: String,
    /// What becomes of the job when its workers have left, where they were all asked to.
    pub yielding: Option<Yielding>,
}

// The statement reads columns in one order everywhere; the macro checks each use against the schema.
macro_rules! select_job {
    ($tail:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            JobRow,
            r#"select job_id, number, spec as "spec: Json<pb::JobSpec>", state, state_message, create_time, start_time,
                      end_time, step, total_steps, attempt, generation, world_size, infrastructure_failures, retries_used,
                      preemptions, run_seconds, sweep_id, last_event,
                      result as "result: Json<pb::JobResult>"
               from jobs "# + $tail
            $(, $argument)*
        )
    };
}

/// The job that a request_id made, and its spec.
pub async fn by_request_id(pool: &PgPool, request: Uuid) -> Result<Option<(JobId, pb::JobSpec)>, DbError> {
    let row = sqlx::query!(
        r#"select job_id, spec as "spec: Json<pb::JobSpec>" from jobs where request_id = $1"#,
        request
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| (JobId(row.job_id), row.spec.0)))
}

/// One job.
pub async fn get(pool: &PgPool, job: JobId) -> Result<Option<JobRow>, DbError> {
    Ok(select_job!("where job_id = $1", job.0).fetch_optional(pool).await?)
}

/// At most `limit` jobs submitted before number `before`, newest first; in one of `states` unless that is empty, and of
/// one tenant or of all.
pub async fn list(
    pool: &PgPool,
    before: i64,
    states: &[JobState],
    tenant: Option<TenantId>,
    limit: u32,
) -> Result<Vec<JobRow>, DbError> {
    let states: Vec<String> = states.iter().map(|state| state.as_str().to_owned()).collect();
    if let Some(tenant) = tenant {
        // By itself, so that the plan walks the tenant's own index.
        let rows = select_job!(
            "where tenant_id = $4 and number < $1 and (cardinality($2::text[]) = 0 or state = any($2))
             order by number desc limit $3",
            before,
            &states,
            i64::from(limit),
            tenant.0,
        );
        return Ok(rows.fetch_all(pool).await?);
    }
    let rows = select_job!(
        "where number < $1 and (cardinality($2::text[]) = 0 or state = any($2)) order by number desc limit $3",
        before,
        &states,
        i64::from(limit),
    );
    Ok(rows.fetch_all(pool).await?)
}

/// Whether there is such a job.
pub async fn exists(pool: &PgPool, job: JobId) -> Result<bool, DbError> {
    let exists =
        sqlx::query_scalar!(r#"select exists (select 1 from jobs where job_id = $1) as "exists!""#, job.0);
    Ok(exists.fetch_one(pool).await?)
}

/// Whether there is such a job of this tenant.
pub async fn belongs(pool: &PgPool, job: JobId, tenant: TenantId) -> Result<bool, DbError> {
    let belongs = sqlx::query_scalar!(
        r#"select exists (select 1 from jobs where job_id = $1 and tenant_id = $2) as "belongs!""#,
        job.0,
        tenant.0,
    );
    Ok(belongs.fetch_one(pool).await?)
}

/// What jobs say.
pub async fn specs(
    pool: &PgPool,
    jobs: impl IntoIterator<Item = JobId>,
) -> Result<HashMap<JobId, pb::JobSpec>, DbError> {
    let ids: Vec<Uuid> = jobs.into_iter().map(|job| job.0).collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query!(
        r#"select job_id, spec as "spec: Json<pb::JobSpec>" from jobs where job_id = any($1)"#,
        &ids
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (JobId(row.job_id), row.spec.0)).collect())
}

/// What a job does.
pub async fn action(tx: &mut PgConnection, job: JobId) -> Result<pb::Action, DbError> {
    let spec =
        sqlx::query_scalar!(r#"select spec as "spec: Json<pb::JobSpec>" from jobs where job_id = $1"#, job.0)
            .fetch_one(tx)
            .await?;
    Ok(spec.0.action())
}

/// Locks a running job's row, if `fence` is its fence. `None`: the fence is stale.
pub async fn lock_live(tx: &mut PgConnection, job: JobId, fence: &Fence) -> Result<Option<Live>, DbError> {
    Ok(lock_running(tx, job).await?.filter(|live| live.fence == *fence))
}

/// Locks a job's row; `None` when it does not run.
pub async fn lock_running(tx: &mut PgConnection, job: JobId) -> Result<Option<Live>, DbError> {
    Ok(lock_all(tx, [job]).await?.remove(&job))
}

/// Locks the rows of these jobs, in one order everywhere, and gives those that run.
pub async fn lock_all(
    tx: &mut PgConnection,
    jobs: impl IntoIterator<Item = JobId>,
) -> Result<HashMap<JobId, Live>, DbError> {
    let jobs: Vec<Uuid> = jobs.into_iter().map(|job| job.0).collect();
    let rows = sqlx::query!(
        "select job_id, state, attempt, generation, generation_id from jobs where job_id = any($1)
         order by job_id for no key update",
        &jobs,
    )
    .fetch_all(&mut *tx)
    .await?;
    let mut fences = HashMap::with_capacity(rows.len());
    for row in rows {
        if parse_state(&row.state)? == JobState::Running {
            let (attempt, generation) = (convert::to_u32(row.attempt), convert::to_u32(row.generation));
            fences.insert(row.job_id, Fence { attempt, generation, generation_id: row.generation_id });
        }
    }
    let running: Vec<Uuid> = fences.keys().copied().collect();
    // A statement of its own, so that what it says of the attempts is as new as the locked rows.
    let rows = sqlx::query!(
        r#"select j.job_id, j.step, j.infrastructure_failures, j.workers_min, j.kinds, j.yielding, a.phase, a.message,
                  a.steps_before, coalesce(g.start_step, 0) as "start_step!"
           from jobs j join attempts a on a.job_id = j.job_id and a.attempt = j.attempt
           left join generations g on g.job_id = j.job_id and g.attempt = j.attempt and g.generation = j.generation
           where j.job_id = any($1)"#,
        &running,
    )
    .fetch_all(tx)
    .await?;
    let mut lives = HashMap::with_capacity(rows.len());
    for row in rows {
        let (job, Some(fence)) = (JobId(row.job_id), fences.remove(&row.job_id)) else { continue };
        let live = Live {
            job,
            fence,
            phase: Phase::parse(&row.phase).ok_or_else(|| DbError::Data(format!("phase {}", row.phase)))?,
            min: convert::to_u32(row.workers_min),
            kinds: row.kinds,
            start_step: convert::to_u64(row.start_step),
            step: convert::to_u64(row.step),
            steps_before: convert::to_u64(row.steps_before),
            infrastructure_failures: convert::to_u32(row.infrastructure_failures),
            message: row.message,
            yielding: row.yielding.as_deref().map(super::life::parse_yielding).transpose()?,
        };
        lives.insert(job, live);
    }
    Ok(lives)
}

/// Locks a job's row, whatever its state; gives the state and the fence of its live or last attempt.
pub async fn lock(tx: &mut PgConnection, job: JobId) -> Result<Option<(JobState, Fence)>, DbError> {
    let row = sqlx::query!(
        "select state, attempt, generation, generation_id from jobs where job_id = $1 for no key update",
        job.0
    )
    .fetch_optional(tx)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let fence = Fence {
        attempt: convert::to_u32(row.attempt),
        generation: convert::to_u32(row.generation),
        generation_id: row.generation_id,
    };
    Ok(Some((parse_state(&row.state)?, fence)))
}

/// Moves a job, and its live attempt with it: the only statements that write their `state`. False when the row was
/// not in the state that the transition begins from.
pub async fn transition(
    tx: &mut PgConnection,
    job: JobId,
    change: Transition,
    message: &str,
) -> Result<bool, DbError> {
    let message = text(message, MAX_STATE_MESSAGE);
    if let Some(attempt) = change.attempt() {
        sqlx::query!(
            "update attempts set state = $2, phase = 'ENDED', message = $3, end_time = now()
             where job_id = $1 and state = 'RUNNING'",
            job.0,
            attempt.as_str(),
            message,
        )
        .execute(&mut *tx)
        .await?;
    }
    let done = sqlx::query!(
        "update jobs set state = $3, state_message = $4,
                start_time = case when $3 = 'RUNNING' then coalesce(start_time, now()) else start_time end,
                world_size = case when $3 = 'RUNNING' then world_size else 0 end,
                queue_time = case when $3 = 'QUEUED' then now() else queue_time end,
                queue_position = null, start_estimate_seconds = null, yielding = null,
                run_seconds = run_seconds + case when $6 then coalesce(
                    (select extract(epoch from now() - a.start_time)::float8 from attempts a
                     where a.job_id = jobs.job_id and a.attempt = jobs.attempt), 0) else 0 end,
                end_time = case when $5 then now() end
         where job_id = $1 and state = $2",
        job.0,
        change.from().as_str(),
        change.to().as_str(),
        message,
        change.to().is_terminal(),
        change.attempt().is_some(),
    )
    .execute(&mut *tx)
    .await?;
    let moved = done.rows_affected() == 1;
    if moved && change.to().is_terminal() {
        // After the row, whose lock orders this with jobs that are stored to come after it.
        sqlx::query!("update job_dependencies set ended = true where after_job_id = $1 and not ended", job.0)
            .execute(tx)
            .await?;
    }
    if moved {
        crate::metrics::transition(change);
    }
    Ok(moved)
}

/// Writes down what came of a job. The caller holds its lock.
pub async fn record_result(tx: &mut PgConnection, job: JobId, result: &pb::JobResult) -> Result<(), DbError> {
    sqlx::query!("update jobs set result = $2 where job_id = $1", job.0, Json(result) as _)
        .execute(tx)
        .await?;
    Ok(())
}

/// Writes down the count of infrastructure failures. The caller holds the job's lock.
pub async fn record_failures(tx: &mut PgConnection, job: JobId, count: u32) -> Result<(), DbError> {
    let count = convert::to_i32(count);
    sqlx::query!("update jobs set infrastructure_failures = $2 where job_id = $1", job.0, count)
        .execute(tx)
        .await?;
    Ok(())
}

pub(super) fn parse_state(state: &str) -> Result<JobState, DbError> {
    JobState::parse(state).ok_or_else(|| DbError::Data(format!("job state {state}")))
}

// === impl JobRow ===

impl JobRow {
    /// The job.
    pub fn id(&self) -> JobId {
        JobId(self.job_id)
    }

    /// Where it stands.
    pub fn state(&self) -> Result<JobState, DbError> {
        parse_state(&self.state)
    }

    /// Number of its last event.
    pub fn last_event(&self) -> u64 {
        convert::to_u64(self.last_event)
    }

    /// As the API shows it; the latest points are read in one statement for all.
    pub async fn messages(pool: &PgPool, rows: Vec<Self>) -> Result<Vec<pb::Job>, DbError> {
        let ids: Vec<Uuid> = rows.iter().map(|row| row.job_id).collect();
        let mut latest = points::latest(pool, &ids).await?;
        rows.into_iter()
            .map(|row| {
                let point = latest.remove(&row.id());
                row.message(point)
            })
            .collect()
    }

    /// As the API shows it.
    pub fn message(self, latest: Option<pb::MetricPoint>) -> Result<pb::Job, DbError> {
        Ok(pb::Job {
            name: self.id().name(),
            state: pb::JobState::from(self.state()?).into(),
            spec: Some(self.spec.0),
            state_message: self.state_message,
            create_time: Some(convert::timestamp(self.create_time)),
            start_time: self.start_time.map(convert::timestamp),
            end_time: self.end_time.map(convert::timestamp),
            step: convert::to_u64(self.step),
            total_steps: convert::to_u64(self.total_steps),
            attempt: convert::to_u32(self.attempt),
            generation: convert::to_u32(self.generation),
            world_size: convert::to_u32(self.world_size),
            infrastructure_failures: convert::to_u32(self.infrastructure_failures),
            retries_used: convert::to_u32(self.retries_used),
            preemptions: convert::to_u32(self.preemptions),
            run_seconds: self.run_seconds,
            sweep: self.sweep_id.map_or(String::new(), |id| SweepId(id).name()),
            latest,
            result: self.result.map(|result| result.0),
        })
    }
}
