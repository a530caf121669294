//! Places in gangs: who holds which, whether its holder is ready, and how its part ended.

use lorafleet_proto::v1 as pb;
use sqlx::{PgConnection, PgPool, types::Json};
use uuid::Uuid;

use crate::{
    convert,
    db::{DbError, text},
    ids::{Fence, JobId, WorkerId},
    job::{AttemptState, MemberOutcome, Phase},
};

/// A member of a gang.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its place, from 0.
    pub index: u32,
    /// The worker's name.
    pub worker: String,
    /// host:port of its collective.
    pub address: String,
    /// What it loaded, once it has.
    pub ready: Option<pb::Ready>,
    /// How its part ended; `None` while it is there.
    pub outcome: Option<MemberOutcome>,
}

/// A place that a worker holds, with what it should know about it.
#[derive(Clone, Debug)]
pub struct Held {
    /// The holder.
    pub worker: WorkerId,
    /// The job.
    pub job: JobId,
    /// The fence that it was assigned under.
    pub fence: Fence,
    /// Its place.
    pub index: u32,
    /// Members in the gang.
    pub world_size: u32,
    /// The attempt's state.
    pub state: AttemptState,
    /// The attempt's phase.
    pub phase: Phase,
    /// All members are ready.
    pub all_ready: bool,
}

/// A place whose holder's lease has ended.
#[derive(Clone, Debug)]
pub struct Orphan {
    /// The former holder.
    pub worker: WorkerId,
    /// Its name.
    pub name: String,
    /// The job.
    pub job: JobId,
    /// The fence that it was assigned under.
    pub fence: Fence,
    /// Another process has its name now.
    pub restarted: bool,
}

/// The members of a generation, by index.
pub async fn members(tx: &mut PgConnection, job: JobId, fence: &Fence) -> Result<Vec<Member>, DbError> {
    let rows = sqlx::query!(
        r#"select index, worker, address, ready as "ready: Json<pb::Ready>", outcome from assignments
           where job_id = $1 and attempt = $2 and generation = $3 order by index"#,
        job.0,
        fence.attempt_i32(),
        fence.generation_i32(),
    )
    .fetch_all(tx)
    .await?;
    rows.into_iter()
        .map(|row| {
            let outcome = row.outcome.map(|outcome| {
                MemberOutcome::parse(&outcome).ok_or_else(|| DbError::Data(format!("outcome {outcome}")))
            });
            Ok(Member {
                index: convert::to_u32(row.index),
                worker: row.worker,
                address: row.address,
                ready: row.ready.map(|ready| ready.0),
                outcome: outcome.transpose()?,
            })
        })
        .collect()
}

/// The index of a worker that is a live member under a fence. The caller holds the job's lock.
pub async fn is_member(
    tx: &mut PgConnection,
    worker: WorkerId,
    job: JobId,
    fence: &Fence,
) -> Result<Option<u32>, DbError> {
    let index = sqlx::query_scalar!(
        "select index from assignments
         where job_id = $1 and attempt = $2 and generation = $3 and worker_id = $4 and live",
        job.0,
        fence.attempt_i32(),
        fence.generation_i32(),
        worker.0,
    )
    .fetch_optional(tx)
    .await?;
    Ok(index.map(convert::to_u32))
}

/// A member has loaded base and data. False: the fence is stale, or it is no live member.
pub async fn set_ready(
    pool: &PgPool,
    worker: WorkerId,
    job: JobId,
    fence: &Fence,
    ready: &pb::Ready,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "update assignments m set ready = $6
         from jobs j
         where m.job_id = $1 and m.attempt = $2 and m.generation = $3 and m.worker_id = $5 and m.live
           and j.job_id = $1 and j.state = 'RUNNING' and j.attempt = $2 and j.generation = $3 and j.generation_id = $4",
        job.0,
        fence.attempt_i32(),
        fence.generation_i32(),
        fence.generation_id,
        worker.0,
        Json(ready) as _,
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Ends a member's part, which frees its slot. The generation's id is compared too; the attempt need not be live.
/// False: it holds no such place.
pub async fn end_member(
    tx: &mut PgConnection,
    worker: WorkerId,
    job: JobId,
    fence: &Fence,
    outcome: MemberOutcome,
    message: &str,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "update assignments m set live = false, outcome = $6, message = $7
         from generations g
         where m.job_id = $1 and m.attempt = $2 and m.generation = $3 and m.worker_id = $5 and m.live
           and g.job_id = $1 and g.attempt = $2 and g.generation = $3 and g.generation_id = $4",
        job.0,
        fence.attempt_i32(),
        fence.generation_i32(),
        fence.generation_id,
        worker.0,
        outcome.as_str(),
        text(message, 4096),
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Every live place that one of `workers` holds.
pub async fn held(pool: &PgPool, workers: &[WorkerId]) -> Result<Vec<Held>, DbError> {
    let workers: Vec<Uuid> = workers.iter().map(|worker| worker.0).collect();
    let rows = sqlx::query!(
        r#"select m.worker_id, m.job_id, m.attempt, m.generation, m.index, g.generation_id, g.world_size,
                  a.state, a.phase,
                  not exists (select 1 from assignments o where o.job_id = m.job_id and o.attempt = m.attempt
                              and o.generation = m.generation and o.ready is null) as "all_ready!"
           from assignments m
           join generations g on g.job_id = m.job_id and g.attempt = m.attempt and g.generation = m.generation
           join attempts a on a.job_id = m.job_id and a.attempt = m.attempt
           where m.live and m.worker_id = any($1)"#,
        &workers,
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|row| {
            let unknown = || DbError::Data(format!("attempt state {}, phase {}", row.state, row.phase));
            Ok(Held {
                worker: WorkerId(row.worker_id),
                job: JobId(row.job_id),
                index: convert::to_u32(row.index),
                world_size: convert::to_u32(row.world_size),
                state: AttemptState::parse(&row.state).ok_or_else(unknown)?,
                phase: Phase::parse(&row.phase).ok_or_else(unknown)?,
                all_ready: row.all_ready,
                fence: Fence {
                    attempt: convert::to_u32(row.attempt),
                    generation: convert::to_u32(row.generation),
                    generation_id: row.generation_id.clone(),
                },
            })
        })
        .collect()
}

/// Live places whose holder's lease has ended, or whose holder is forgotten.
pub async fn orphans(pool: &PgPool) -> Result<Vec<Orphan>, DbError> {
    let rows = sqlx::query_as!(
        OrphanRow,
        r#"select m.worker_id, m.worker, m.job_id, m.attempt, m.generation, g.generation_id,
                exists (select 1 from workers n where n.name = m.worker and n.state = 'LIVE') as "restarted!"
         from assignments m
         join generations g on g.job_id = m.job_id and g.attempt = m.attempt and g.generation = m.generation
         where m.live and not exists (select 1 from workers w where w.worker_id = m.worker_id and w.state = 'LIVE')"#,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(OrphanRow::orphan).collect())
}

struct OrphanRow {
    worker_id: Uuid,
    worker: String,
    job_id: Uuid,
    attempt: i32,
    generation: i32,
    generation_id: String,
    restarted: bool,
}

impl OrphanRow {
    fn orphan(self) -> Orphan {
        Orphan {
            worker: WorkerId(self.worker_id),
            name: self.worker,
            job: JobId(self.job_id),
            fence: Fence {
                attempt: convert::to_u32(self.attempt),
                generation: convert::to_u32(self.generation),
                generation_id: self.generation_id,
            },
            restarted: self.restarted,
        }
    }
}
