//! A job's history: every event that is stored, with dense numbers, and how it is read back.

use chrono::{DateTime, Utc};
use lorafleet_proto::v1 as pb;
use sqlx::{PgConnection, PgPool};

use crate::{
    convert,
    db::{DbError, text},
    ids::{Fence, JobId},
};

/// Longest message that is kept, in bytes.
pub const MAX_MESSAGE: usize = 4096;
/// Longest kind of a reported event, in bytes.
const MAX_KIND: usize = 64;

/// Something that happened to a job.
#[derive(Clone, Debug)]
pub struct Event<'a> {
    /// What kind of thing: "created", "started", …
    pub kind: &'a str,
    /// In one sentence.
    pub message: String,
    /// The gang it belongs to.
    pub fence: Option<&'a Fence>,
    /// What makes it unique within the attempt, where members report it.
    pub key: Option<&'a str>,
}

impl<'a> Event<'a> {
    /// An event of the coordinator's own.
    pub fn new(kind: &'a str, message: impl Into<String>, fence: Option<&'a Fence>) -> Self {
        Self { kind, message: message.into(), fence, key: None }
    }
}

/// Appends an event within the caller's transaction. The number comes from the job's row, which stays locked until
/// the transaction ends: no number is used twice, none is left out.
pub async fn append(tx: &mut PgConnection, job: JobId, event: Event<'_>) -> Result<(), DbError> {
    let (attempt, generation) = event.fence.map_or((0, 0), |f| (f.attempt_i32(), f.generation_i32()));
    sqlx::query!(
        "with numbered as (update jobs set last_event = last_event + 1 where job_id = $1 returning last_event)
         insert into job_events (job_id, number, kind, message, attempt, generation, key)
         select $1, last_event, $2, $3, $4, $5, $6 from numbered",
        job.0,
        text(event.kind, MAX_KIND),
        text(&event.message, MAX_MESSAGE),
        attempt,
        generation,
        event.key,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Whether an event with this key is stored already. The caller holds the job's lock.
pub async fn is_reported(
    tx: &mut PgConnection,
    job: JobId,
    attempt: u32,
    key: &str,
) -> Result<bool, DbError> {
    let found = sqlx::query_scalar!(
        r#"select exists (select 1 from job_events where job_id = $1 and attempt = $2 and key = $3) as "found!""#,
        job.0,
        convert::to_i32(attempt),
        key,
    )
    .fetch_one(tx)
    .await?;
    Ok(found)
}

/// At most `limit` events of a job after a number, in order.
pub async fn list(pool: &PgPool, job: JobId, after: u64, limit: u32) -> Result<Vec<pb::JobEvent>, DbError> {
    let rows = sqlx::query_as!(
        EventRow,
        "select number, time, kind, message, attempt, generation from job_events
         where job_id = $1 and number > $2 order by number limit $3",
        job.0,
        convert::to_i64(after),
        i64::from(limit),
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| row.message(job)).collect())
}

struct EventRow {
    number: i64,
    time: DateTime<Utc>,
    kind: String,
    message: String,
    attempt: i32,
    generation: i32,
}

impl EventRow {
    fn message(self, job: JobId) -> pb::JobEvent {
        pb::JobEvent {
            name: format!("{}/events/{}", job.name(), self.number),
            number: convert::to_u64(self.number),
            time: Some(convert::timestamp(self.time)),
            kind: self.kind,
            message: self.message,
            attempt: convert::to_u32(self.attempt),
            generation: convert::to_u32(self.generation),
        }
    }
}
