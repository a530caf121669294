//! Metric points: one a finished step, stored under the fence; the highest (attempt, generation) wins.

use std::collections::HashMap;

use lorafleet_proto::v1 as pb;
use sqlx::{PgPool, types::Json};
use uuid::Uuid;

use crate::{
    convert,
    db::DbError,
    gang::Fenced,
    ids::{Fence, JobId, WorkerId},
};

/// Most points that one report may carry.
pub const MAX_POINTS: usize = 4096;

/// Of a report, what had not been stored before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News {
    /// Steps.
    pub steps: u64,
    /// Their tokens.
    pub tokens: u64,
}

/// Stores a member's points and the job's last step, in one statement. Stale: the fence is not the job's, or the worker
/// is no live member under it; nothing was stored.
pub async fn store(
    pool: &PgPool,
    worker: WorkerId,
    job: JobId,
    fence: &Fence,
    points: &[pb::MetricPoint],
) -> Result<Fenced<News>, DbError> {
    let columns = Columns::from_points(points, fence);
    let stored = sqlx::query!(
        r#"with live as (
             update jobs set step = greatest(step, (select coalesce(max(s), 0) from unnest($6::bigint[]) s))
             where job_id = $1 and state = 'RUNNING' and attempt = $2 and generation = $3 and generation_id = $4
               and exists (select 1 from members m
                           join places p on p.job_id = m.job_id and p.attempt = m.attempt and p.place = m.place
                           where m.job_id = $1 and m.attempt = $2 and m.generation = $3 and p.worker_id = $5 and p.live)
             returning job_id
           ), stored as (
             insert into metric_points (job_id, attempt, generation, step, loss, lr, grad_norm, tokens,
                 tokens_per_second, step_seconds, reduce_seconds, bytes_sent, seconds_left, eval_loss, eval_scores)
             select live.job_id, p.* from live, unnest($18::int[], $19::int[], $6::bigint[], $7::float8[], $8::float8[],
                 $9::float8[], $10::bigint[], $11::float8[], $12::float8[], $13::float8[], $14::bigint[],
                 $15::float8[], $16::float8[], $17::jsonb[]) p
             on conflict (job_id, step) do update set attempt = excluded.attempt, generation = excluded.generation,
                 loss = excluded.loss, lr = excluded.lr, grad_norm = excluded.grad_norm, tokens = excluded.tokens,
                 tokens_per_second = excluded.tokens_per_second, step_seconds = excluded.step_seconds,
                 reduce_seconds = excluded.reduce_seconds, bytes_sent = excluded.bytes_sent,
                 seconds_left = excluded.seconds_left,
                 eval_loss = coalesce(excluded.eval_loss, metric_points.eval_loss),
                 eval_scores = case when excluded.eval_loss is null then metric_points.eval_scores
                                    else excluded.eval_scores end,
                 stored = metric_points.stored + 1
             where (metric_points.attempt, metric_points.generation) <= (excluded.attempt, excluded.generation)
             returning stored = 1 as new, tokens
           ) select (select count(*) from live) as "live!", (select count(*) from stored where new) as "steps!",
                    (select coalesce(sum(tokens), 0)::bigint from stored where new) as "tokens!""#,
        job.0,
        fence.attempt_i32(),
        fence.generation_i32(),
        fence.generation_id,
        worker.0,
        &columns.step,
        &columns.loss,
        &columns.lr,
        &columns.grad_norm,
        &columns.tokens,
        &columns.tokens_per_second,
        &columns.step_seconds,
        &columns.reduce_seconds,
        &columns.bytes_sent,
        &columns.seconds_left,
        &columns.eval_loss as &[Option<f64>],
        &columns.eval_scores as _,
        &columns.attempt,
        &columns.generation,
    )
    .fetch_one(pool)
    .await?;
    if stored.live == 0 {
        return Ok(Fenced::Stale);
    }
    Ok(Fenced::Done(News { steps: convert::to_u64(stored.steps), tokens: convert::to_u64(stored.tokens) }))
}

/// At most `limit` points of a job after a step (-1: from the start), in order of steps.
pub async fn list(
    pool: &PgPool,
    job: JobId,
    after: i64,
    limit: u32,
) -> Result<Vec<pb::MetricPoint>, DbError> {
    let rows = sqlx::query_as!(
        PointRow,
        r#"select job_id, step, attempt, generation, loss, lr, grad_norm, tokens, tokens_per_second, step_seconds,
                  reduce_seconds, bytes_sent, seconds_left, eval_loss, eval_scores as "eval_scores: Json<Vec<pb::Score>>"
           from metric_points where job_id = $1 and step > $2 order by step limit $3"#,
        job.0,
        after,
        i64::from(limit),
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(PointRow::message).collect())
}

/// The latest point of each job that has one.
pub async fn latest(pool: &PgPool, jobs: &[Uuid]) -> Result<HashMap<JobId, pb::MetricPoint>, DbError> {
    let rows = sqlx::query_as!(
        PointRow,
        r#"select p.job_id, p.step, p.attempt, p.generation, p.loss, p.lr, p.grad_norm, p.tokens, p.tokens_per_second,
                  p.step_seconds, p.reduce_seconds, p.bytes_sent, p.seconds_left, p.eval_loss,
                  p.eval_scores as "eval_scores: Json<Vec<pb::Score>>"
           from unnest($1::uuid[]) wanted (id)
           cross join lateral (select * from metric_points where job_id = wanted.id order by step desc limit 1) p"#,
        jobs,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (JobId(row.job_id), row.message())).collect())
}

/// Points as the arrays that one statement stores.
#[derive(Default)]
struct Columns {
    attempt: Vec<i32>,
    generation: Vec<i32>,
    step: Vec<i64>,
    loss: Vec<f64>,
    lr: Vec<f64>,
    grad_norm: Vec<f64>,
    tokens: Vec<i64>,
    tokens_per_second: Vec<f64>,
    step_seconds: Vec<f64>,
    reduce_seconds: Vec<f64>,
    bytes_sent: Vec<i64>,
    seconds_left: Vec<f64>,
    eval_loss: Vec<Option<f64>>,
    eval_scores: Vec<Json<Vec<pb::Score>>>,
}

impl Columns {
    /// The last point of a step counts: one statement cannot store a key twice. One that an earlier attempt could not
    /// report, and a checkpoint brought on, stays that one's.
    fn from_points(points: &[pb::MetricPoint], fence: &Fence) -> Self {
        let by_step: std::collections::BTreeMap<u64, &pb::MetricPoint> =
            points.iter().map(|p| (p.step, p)).collect();
        let mut columns = Self::default();
        for (step, point) in by_step {
            let (attempt, generation) = match point.attempt {
                earlier if earlier > 0 && earlier < fence.attempt => (earlier, point.generation),
                _ => (fence.attempt, fence.generation),
            };
            columns.attempt.push(convert::to_i32(attempt));
            columns.generation.push(convert::to_i32(generation));
            columns.step.push(convert::to_i64(step));
            columns.loss.push(point.loss);
            columns.lr.push(point.lr);
            columns.grad_norm.push(point.grad_norm);
            columns.tokens.push(convert::to_i64(point.tokens));
            columns.tokens_per_second.push(point.tokens_per_second);
            columns.step_seconds.push(point.step_seconds);
            columns.reduce_seconds.push(point.reduce_seconds);
            columns.bytes_sent.push(convert::to_i64(point.bytes_sent));
            columns.seconds_left.push(point.seconds_left);
            columns.eval_loss.push(point.eval_loss);
            columns.eval_scores.push(Json(point.eval_scores.clone()));
        }
        columns
    }
}

struct PointRow {
    job_id: Uuid,
    step: i64,
    attempt: i32,
    generation: i32,
    loss: f64,
    lr: f64,
    grad_norm: f64,
    tokens: i64,
    tokens_per_second: f64,
    step_seconds: f64,
    reduce_seconds: f64,
    bytes_sent: i64,
    seconds_left: f64,
    eval_loss: Option<f64>,
    eval_scores: Json<Vec<pb::Score>>,
}

impl PointRow {
    fn message(self) -> pb::MetricPoint {
        pb::MetricPoint {
            step: convert::to_u64(self.step),
            loss: self.loss,
            lr: self.lr,
            grad_norm: self.grad_norm,
            tokens: convert::to_u64(self.tokens),
            tokens_per_second: self.tokens_per_second,
            step_seconds: self.step_seconds,
            reduce_seconds: self.reduce_seconds,
            bytes_sent: convert::to_u64(self.bytes_sent),
            seconds_left: self.seconds_left,
            eval_loss: self.eval_loss,
            attempt: convert::to_u32(self.attempt),
            generation: convert::to_u32(self.generation),
            eval_scores: self.eval_scores.0,
        }
    }
}
