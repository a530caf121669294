//! What was used in a window of time: what is counted, with what is not counted yet, in one statement, so that nothing is
//! missed or told twice while it is counted.

use chrono::{DateTime, Utc};
use lorafleet_proto::v1 as pb;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    convert,
    db::DbError,
    ids::{JobId, TenantId},
};

/// Whose usage is asked for, and of when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Of this tenant only.
    pub tenant: Option<TenantId>,
    /// From this hour on.
    pub start: DateTime<Utc>,
    /// Up to the beginning of this one.
    pub end: DateTime<Utc>,
}

/// An entry, and the key of pages.
#[derive(Clone, Debug)]
pub struct JobUsage {
    /// The job's number.
    pub number: i64,
    /// What is shown.
    pub entry: pb::UsageEntry,
}

/// What each tenant used in the window, with what it has in the store now; by name.
pub async fn by_tenant(pool: &PgPool, window: &Window) -> Result<Vec<pb::UsageEntry>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        r#"with used as (
             select tenant_id, sum(worker_seconds) as worker_seconds, sum(tokens)::bigint as tokens,
                    sum(flops) as flops, sum(bytes)::bigint as bytes
             from usage_until_now where hour >= $1 and hour < $2 group by tenant_id
           ), stored as (
             select tenant_id, sum(bytes)::bigint as bytes from checkpoints
             where not expired and ($3::uuid is null or tenant_id = $3) group by tenant_id
           )
           select t.name as "tenant!", null::uuid as job, '' as "display_name!", null::timestamptz as hour,
                  0::bigint as "number!", coalesce(u.worker_seconds, 0) as "worker_seconds!",
                  coalesce(u.tokens, 0) as "tokens!", coalesce(u.flops, 0) as "flops!", coalesce(u.bytes, 0) as "bytes!",
                  coalesce(s.bytes, 0) as "stored!"
           from tenants t left join used u on u.tenant_id = t.tenant_id left join stored s on s.tenant_id = t.tenant_id
           where ($3::uuid is null or t.tenant_id = $3) and (u.tenant_id is not null or s.tenant_id is not null)
           order by t.name"#,
        window.start,
        window.end,
        window.tenant.map(|tenant| tenant.0),
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(Row::entry).collect())
}

/// What was used in each hour of the window, first to last.
pub async fn by_hour(pool: &PgPool, window: &Window) -> Result<Vec<pb::UsageEntry>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        r#"select '' as "tenant!", null::uuid as job, '' as "display_name!", hour, 0::bigint as "number!",
                  sum(worker_seconds) as "worker_seconds!", sum(tokens)::bigint as "tokens!", sum(flops) as "flops!",
                  sum(bytes)::bigint as "bytes!", 0::bigint as "stored!"
           from usage_until_now
           where hour >= $1 and hour < $2 and ($3::uuid is null or tenant_id = $3) group by hour order by hour"#,
        window.start,
        window.end,
        window.tenant.map(|tenant| tenant.0),
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(Row::entry).collect())
}

/// At most `limit` jobs that ran in the window, newest first, with numbers below `before`; each with all that it used.
pub async fn by_job(
    pool: &PgPool,
    window: &Window,
    before: i64,
    limit: u32,
) -> Result<Vec<JobUsage>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        r#"select coalesce(t.name, '') as "tenant!", j.job_id as job, coalesce(j.spec ->> 'displayName', '') as "display_name!",
                  null::timestamptz as hour, j.number,
                  coalesce(c.worker_seconds, 0) + place.seconds as "worker_seconds!",
                  coalesce(c.tokens, 0) + point.tokens as "tokens!",
                  coalesce(c.flops, 0) + point.tokens * j.flops_per_token as "flops!",
                  coalesce(c.bytes, 0) + file.bytes as "bytes!", file.stored as "stored!"
           from jobs j left join tenants t on t.tenant_id = j.tenant_id left join job_costs c on c.job_id = j.job_id
           cross join lateral (
             select coalesce(sum(u.seconds), 0) as seconds from places_uncounted_hours u where u.job_id = j.job_id
           ) place
           cross join lateral (
             select coalesce(sum(p.tokens), 0)::bigint as tokens from metric_points p
             where p.job_id = j.job_id and p.step > coalesce(c.counted_step, -1)
           ) point
           cross join lateral (
             select coalesce(sum(f.bytes) filter (where not f.counted), 0)::bigint as bytes,
                    coalesce(sum(f.bytes) filter (where not f.expired), 0)::bigint as stored
             from checkpoints f where f.job_id = j.job_id
           ) file
           where j.number < $4 and j.start_time < $2 and (j.end_time is null or j.end_time >= $1)
             and ($3::uuid is null or j.tenant_id = $3)
           order by j.number desc limit $5"#,
        window.start,
        window.end,
        window.tenant.map(|tenant| tenant.0),
        before,
        i64::from(limit),
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| JobUsage { number: row.number, entry: row.entry() }).collect())
}

struct Row {
    tenant: String,
    job: Option<Uuid>,
    display_name: String,
    hour: Option<DateTime<Utc>>,
    number: i64,
    worker_seconds: f64,
    tokens: i64,
    flops: f64,
    bytes: i64,
    stored: i64,
}

impl Row {
    fn entry(self) -> pb::UsageEntry {
        pb::UsageEntry {
            tenant: self.tenant,
            job: self.job.map(|job| JobId(job).name()).unwrap_or_default(),
            display_name: self.display_name,
            hour: self.hour.map(convert::timestamp),
            worker_seconds: self.worker_seconds,
            tokens: convert::to_u64(self.tokens),
            flops: self.flops,
            bytes_written: convert::to_u64(self.bytes),
            stored_bytes: convert::to_u64(self.stored),
        }
    }
}
