//! What the rows say that connected workers should know about the places they hold.

use sqlx::PgPool;
use uuid::Uuid;

use super::places::parse_state;
use crate::{
    convert,
    db::DbError,
    ids::{Fence, JobId, PlaceNo, RunId, WorkerId},
    job::{AttemptState, Phase},
};

/// A live place, with what its holder should know about it.
#[derive(Clone, Debug)]
pub struct Held {
    /// The holder.
    pub worker: WorkerId,
    /// The place.
    pub run: RunId,
    /// The job's fence; of an attempt that is over, that of its loading.
    pub fence: Fence,
    /// Its index in the current generation, if it is a member.
    pub index: Option<u32>,
    /// The attempt's state.
    pub state: AttemptState,
    /// The attempt's phase.
    pub phase: Phase,
    /// It has loaded.
    pub ready: bool,
    /// It has left the current generation's collective.
    pub parted: bool,
    /// Why it is asked to give the place back, if it is.
    pub leaving: Option<String>,
    /// The current generation is to change: a newcomer is ready, or a member's part has ended.
    pub regroup: bool,
}

/// Every live place that one of `workers` holds.
pub async fn held(pool: &PgPool, workers: &[WorkerId]) -> Result<Vec<Held>, DbError> {
    let workers: Vec<Uuid> = workers.iter().map(|worker| worker.0).collect();
    let rows = sqlx::query_as!(
        HeldRow,
        r#"select p.worker_id, p.job_id, p.attempt, p.place, p.ready is not null as "ready!",
                  p.parted is not null as "parted!", p.leaving, a.state, a.phase, m.index as "index?",
                  case when j.attempt = p.attempt then j.generation else 0 end as "generation!",
                  case when j.attempt = p.attempt then j.generation_id else '' end as "generation_id!",
                  (a.phase = 'TRAINING' and (
                    exists (select 1 from places n where n.job_id = p.job_id and n.attempt = p.attempt and n.live
                              and n.ready is not null and not exists (
                                select 1 from members o where o.job_id = n.job_id and o.attempt = n.attempt
                                  and o.generation = j.generation and o.place = n.place))
                    or exists (select 1 from members o
                               join places e on e.job_id = o.job_id and e.attempt = o.attempt and e.place = o.place
                               where o.job_id = p.job_id and o.attempt = p.attempt and o.generation = j.generation
                                 and not e.live))) as "regroup!"
           from places p
           join attempts a on a.job_id = p.job_id and a.attempt = p.attempt
           join jobs j on j.job_id = p.job_id
           left join members m on m.job_id = p.job_id and m.attempt = p.attempt and m.place = p.place
                and j.attempt = p.attempt and m.generation = j.generation
           where p.live and p.worker_id = any($1)"#,
        &workers,
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(HeldRow::held).collect()
}

struct HeldRow {
    worker_id: Uuid,
    job_id: Uuid,
    attempt: i32,
    place: i32,
    ready: bool,
    parted: bool,
    leaving: Option<String>,
    state: String,
    phase: String,
    index: Option<i32>,
    generation: i32,
    generation_id: String,
    regroup: bool,
}

impl HeldRow {
    fn held(self) -> Result<Held, DbError> {
        let attempt = convert::to_u32(self.attempt);
        Ok(Held {
            worker: WorkerId(self.worker_id),
            run: RunId { job: JobId(self.job_id), attempt, place: PlaceNo(convert::to_u32(self.place)) },
            fence: Fence {
                attempt,
                generation: convert::to_u32(self.generation),
                generation_id: self.generation_id,
            },
            index: self.index.map(convert::to_u32),
            state: parse_state(&self.state)?,
            phase: Phase::parse(&self.phase).ok_or_else(|| DbError::Data(format!("phase {}", self.phase)))?,
            ready: self.ready,
            parted: self.parted,
            leaving: self.leaving,
            regroup: self.regroup,
        })
    }
}
