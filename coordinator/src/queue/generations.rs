//! Generations: opened by compare-and-set of the fence, and what their members are told.

use lorafleet_proto::v1 as pb;
use sqlx::PgConnection;

use super::Live;
use crate::{
    convert,
    db::DbError,
    ids::{Fence, JobId, PlaceNo, RunId},
};

/// A generation to open.
#[derive(Clone, Debug)]
pub struct NewGeneration<'a> {
    /// Its fence.
    pub fence: &'a Fence,
    /// Its members by index.
    pub members: &'a [PlaceNo],
    /// The greatest step that one of them holds.
    pub start_step: u64,
    /// The kinds of the members' workers.
    pub kinds: &'a str,
}

/// Moves a running job from the fence of `live` to that of a new generation with its members; nobody has parted from it
/// yet. False: the fence has changed meanwhile, and nothing was written.
pub async fn open_generation(
    tx: &mut PgConnection,
    live: &Live,
    new: &NewGeneration<'_>,
) -> Result<bool, DbError> {
    let members: Vec<i32> = new.members.iter().map(|place| place.to_i32()).collect();
    let moved = sqlx::query_scalar!(
        r#"with moved as (
             update jobs set generation = $5, generation_id = $6, world_size = cardinality($7::int[]), kinds = $9
             where job_id = $1 and state = 'RUNNING' and attempt = $2 and generation = $3 and generation_id = $4
             returning job_id
           ), opened as (
             insert into generations (job_id, attempt, generation, generation_id, world_size, start_step)
             select job_id, $2, $5, $6, cardinality($7::int[]), $8 from moved
           ), seated as (
             insert into members (job_id, attempt, generation, index, place)
             select moved.job_id, $2, $5, p.number - 1, p.place
             from moved, unnest($7::int[]) with ordinality p (place, number)
           ), gathered as (
             update places p set parted = null from moved
             where p.job_id = moved.job_id and p.attempt = $2 and p.parted is not null
           ), training as (
             update attempts a set phase = 'TRAINING', start_step = $8 from moved
             where a.job_id = moved.job_id and a.attempt = $2 and a.phase = 'LOADING'
           ) select count(*) as "moved!" from moved"#,
        live.job.0,
        live.fence.attempt_i32(),
        live.fence.generation_i32(),
        live.fence.generation_id,
        new.fence.generation_i32(),
        new.fence.generation_id,
        &members,
        convert::to_i64(new.start_step),
        new.kinds,
    )
    .fetch_one(tx)
    .await?;
    Ok(moved == 1)
}

/// The members of a generation by index, as they are told.
pub async fn members(tx: &mut PgConnection, job: JobId, fence: &Fence) -> Result<Vec<pb::Member>, DbError> {
    let rows = sqlx::query!(
        "select m.index, m.place, p.worker, p.address
         from members m join places p on p.job_id = m.job_id and p.attempt = m.attempt and p.place = m.place
         where m.job_id = $1 and m.attempt = $2 and m.generation = $3 order by m.index",
        job.0,
        fence.attempt_i32(),
        fence.generation_i32(),
    )
    .fetch_all(tx)
    .await?;
    let member = |index, place, worker, address| pb::Member {
        index: convert::to_u32(index),
        worker,
        address,
        place: convert::to_u32(place),
    };
    Ok(rows.into_iter().map(|row| member(row.index, row.place, row.worker, row.address)).collect())
}

/// Whether a place was a member of the generation under a fence.
pub async fn was_member(tx: &mut PgConnection, run: RunId, fence: &Fence) -> Result<bool, DbError> {
    let found = sqlx::query_scalar!(
        r#"select exists (
             select 1 from members m
             join generations g on g.job_id = m.job_id and g.attempt = m.attempt and g.generation = m.generation
             where m.job_id = $1 and m.attempt = $2 and m.generation = $3 and g.generation_id = $4 and m.place = $5
           ) as "found!""#,
        run.job.0,
        fence.attempt_i32(),
        fence.generation_i32(),
        fence.generation_id,
        run.place.to_i32(),
    )
    .fetch_one(tx)
    .await?;
    Ok(found)
}
