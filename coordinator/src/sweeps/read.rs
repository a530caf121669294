//! Sweeps and their children as the API shows them.

use chrono::{DateTime, Utc};
use lorafleet_proto::v1 as pb;
use sqlx::{PgPool, types::Json};
use uuid::Uuid;

use crate::{
    convert,
    db::DbError,
    ids::{JobId, SweepId},
    job::JobState,
};

/// A sweep's row, with its children counted.
#[derive(Clone, Debug)]
pub struct SweepRow {
    sweep_id: Uuid,
    /// Order of submission, the key of pages.
    pub number: i64,
    spec: Json<pb::JobSpec>,
    sweep: Json<pb::SweepSpec>,
    children: i32,
    cancelled: bool,
    create_time: DateTime<Utc>,
    end_time: Option<DateTime<Utc>>,
    queued: i64,
    running: i64,
    paused: i64,
    succeeded: i64,
    failed: i64,
    cancelled_children: i64,
    ended_early: i64,
    best: Option<i32>,
}

// The statement reads columns in one order everywhere; the macro checks each use against the schema. The best child is
// one of those that succeeded; while none has, one of those that go on.
macro_rules! select_sweep {
    ($tail:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            SweepRow,
            r#"select s.sweep_id, s.number, s.spec as "spec: Json<pb::JobSpec>", s.sweep as "sweep: Json<pb::SweepSpec>",
                      s.children, s.cancelled, s.create_time, s.end_time,
                      c.queued as "queued!", c.running as "running!", c.paused as "paused!", c.succeeded as "succeeded!",
                      c.failed as "failed!", c.cancelled as "cancelled_children!",
                      (select count(*) from sweep_scores e
                       where e.sweep_id = s.sweep_id and e.ending is not null and e.settled) as "ended_early!",
                      (select j.sweep_child
                       from jobs j
                       cross join lateral (select p.eval_loss from metric_points p
                                           where p.job_id = j.job_id and p.eval_loss is not null
                                           order by p.step desc limit 1) last
                       where j.sweep_id = s.sweep_id and j.state not in ('FAILED', 'CANCELLED')
                       order by j.state <> 'SUCCEEDED', last.eval_loss, j.sweep_child limit 1) as best
               from sweeps s
               cross join lateral (
                 select count(*) filter (where j.state = 'QUEUED') as queued,
                        count(*) filter (where j.state = 'RUNNING') as running,
                        count(*) filter (where j.state = 'PAUSED') as paused,
                        count(*) filter (where j.state = 'SUCCEEDED') as succeeded,
                        count(*) filter (where j.state = 'FAILED') as failed,
                        count(*) filter (where j.state = 'CANCELLED') as cancelled
                 from jobs j where j.sweep_id = s.sweep_id) c "# + $tail
            $(, $argument)*
        )
    };
}

/// One sweep.
pub async fn get(pool: &PgPool, sweep: SweepId) -> Result<Option<SweepRow>, DbError> {
    Ok(select_sweep!("where s.sweep_id = $1", sweep.0).fetch_optional(pool).await?)
}

/// Whether there is such a sweep; of a tenant, by its name, or of any.
pub async fn exists(pool: &PgPool, sweep: SweepId, tenant: Option<&str>) -> Result<bool, DbError> {
    let exists = sqlx::query_scalar!(
        r#"select exists (select 1 from sweeps
                          where sweep_id = $1 and ($2::text is null or spec ->> 'tenant' = $2)) as "exists!""#,
        sweep.0,
        tenant,
    );
    Ok(exists.fetch_one(pool).await?)
}

/// At most `limit` sweeps submitted before number `before`, newest first; of a tenant, by its name, or of all.
pub async fn list(
    pool: &PgPool,
    before: i64,
    tenant: Option<&str>,
    limit: u32,
) -> Result<Vec<SweepRow>, DbError> {
    let rows = select_sweep!(
        "where s.number < $1 and ($3::text is null or s.spec ->> 'tenant' = $3) order by s.number desc limit $2",
        before,
        i64::from(limit),
        tenant,
    );
    Ok(rows.fetch_all(pool).await?)
}

/// At most `limit` children of a sweep after a place (0: from the first), in order.
pub async fn children(
    pool: &PgPool,
    sweep: SweepId,
    after: i32,
    limit: u32,
) -> Result<Vec<pb::SweepChild>, DbError> {
    let rows = sqlx::query_as!(
        ChildRow,
        r#"select j.job_id, j.sweep_child as "child!", j.sweep_settings as "settings: Json<Vec<pb::SweepSetting>>",
                  j.state, j.state_message, j.step, j.total_steps,
                  (select p.loss from metric_points p where p.job_id = j.job_id and p.step > 0
                   order by p.step desc limit 1) as loss,
                  e.steps as "steps?", e.losses as "losses?",
                  (select max(c.rung) * s.rung_steps from sweep_scores c
                   where c.sweep_id = j.sweep_id and c.child = j.sweep_child and c.ending is not null and c.settled)
                  as ended_at
           from jobs j join sweeps s on s.sweep_id = j.sweep_id
           left join lateral (
             select array_agg(p.step order by p.step) as steps, array_agg(p.eval_loss order by p.step) as losses
             from metric_points p where p.job_id = j.job_id and p.eval_loss is not null) e on true
           where j.sweep_id = $1 and j.sweep_child > $2 order by j.sweep_child limit $3"#,
        sweep.0,
        after,
        i64::from(limit),
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(ChildRow::message).collect()
}

struct ChildRow {
    job_id: Uuid,
    child: i32,
    settings: Option<Json<Vec<pb::SweepSetting>>>,
    state: String,
    state_message: String,
    step: i64,
    total_steps: i64,
    loss: Option<f64>,
    steps: Option<Vec<i64>>,
    losses: Option<Vec<f64>>,
    ended_at: Option<i64>,
}

impl ChildRow {
    fn message(self) -> Result<pb::SweepChild, DbError> {
        let state = JobState::parse(&self.state);
        let state = state.ok_or_else(|| DbError::Data(format!("job state {}", self.state)))?;
        let evaluations = self.steps.into_iter().flatten().zip(self.losses.into_iter().flatten());
        Ok(pb::SweepChild {
            job: JobId(self.job_id).name(),
            index: convert::to_u32(self.child),
            parameters: self.settings.map(|settings| settings.0).unwrap_or_default(),
            state: pb::JobState::from(state).into(),
            state_message: self.state_message,
            step: convert::to_u64(self.step),
            total_steps: convert::to_u64(self.total_steps),
            loss: self.loss,
            evaluations: evaluations
                .map(|(step, loss)| pb::SweepEvaluation { step: convert::to_u64(step), loss })
                .collect(),
            ended_at: convert::to_u64(self.ended_at.unwrap_or(0)),
        })
    }
}

// === impl SweepRow ===

impl SweepRow {
    /// As the API shows it; the best child is read by itself.
    pub async fn message(self, pool: &PgPool) -> Result<pb::Sweep, DbError> {
        let sweep = SweepId(self.sweep_id);
        let best = match self.best {
            Some(best) => children(pool, sweep, best - 1, 1).await?.pop(),
            None => None,
        };
        let count = |n: i64| u32::try_from(n).unwrap_or(0);
        Ok(pb::Sweep {
            name: sweep.name(),
            state: self.state().into(),
            spec: Some(self.spec.0),
            sweep: Some(self.sweep.0),
            create_time: Some(convert::timestamp(self.create_time)),
            end_time: self.end_time.map(convert::timestamp),
            children: convert::to_u32(self.children),
            queued: count(self.queued),
            running: count(self.running),
            paused: count(self.paused),
            succeeded: count(self.succeeded),
            failed: count(self.failed),
            cancelled: count(self.cancelled_children),
            ended_early: count(self.ended_early),
            best,
        })
    }

    fn state(&self) -> pb::SweepState {
        if self.queued + self.running + self.paused > 0 {
            pb::SweepState::Running
        } else if self.cancelled {
            pb::SweepState::Cancelled
        } else if self.succeeded > 0 {
            pb::SweepState::Succeeded
        } else {
            pb::SweepState::Failed
        }
    }
}
