//! Generations: opened by compare-and-set of the fence, and what their members are told.

use std::collections::HashSet;

use lorafleet_proto::v1 as pb;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Live, all_moved, attempts::flops_per_token, places::run_of};
use crate::{
    convert,
    db::{DbError, text},
    events,
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

/// The first generation of a gang that begins from scratch.
#[derive(Clone, Debug)]
pub struct Beginning<'a> {
    /// The job, as it is locked.
    pub live: &'a Live,
    /// The generation's fence.
    pub fence: Fence,
    /// Its members by index.
    pub members: Vec<PlaceNo>,
    /// The kinds of their workers.
    pub kinds: String,
    /// What its first member loaded.
    pub ready: &'a pb::Ready,
    /// The event's words.
    pub message: String,
}

/// Opens first generations, and tells each by an event. The caller holds the jobs' locks.
pub async fn begin_all(tx: &mut PgConnection, beginnings: &[Beginning<'_>]) -> Result<(), DbError> {
    let of = |value: fn(&Beginning<'_>) -> i32| beginnings.iter().map(value).collect::<Vec<i32>>();
    let (mut seat_job, mut seat_place, mut seat_index) = (Vec::new(), Vec::new(), Vec::new());
    for beginning in beginnings {
        for (index, place) in (0..).zip(&beginning.members) {
            seat_job.push(beginning.live.job.0);
            seat_place.push(place.to_i32());
            seat_index.push(index);
        }
    }
    let moved = sqlx::query_scalar!(
        r#"with new as (
             select * from unnest($1::uuid[], $2::int[], $3::int[], $4::text[], $5::int[], $6::text[], $7::bigint[], $8::float8[], $9::text[])
               n (job_id, attempt, generation, generation_id, size, kinds, total_steps, flops_per_token, message)
           ), moved as (
             update jobs j set generation = n.generation, generation_id = n.generation_id, world_size = n.size,
                    kinds = n.kinds, total_steps = n.total_steps, flops_per_token = n.flops_per_token, last_event = j.last_event + 1
             from new n where j.job_id = n.job_id and j.state = 'RUNNING' and j.attempt = n.attempt
               and j.generation = 0 and j.generation_id = ''
             returning j.job_id, j.last_event, n.attempt, n.generation, n.generation_id, n.size, n.message
           ), opened as (
             insert into generations (job_id, attempt, generation, generation_id, world_size)
             select job_id, attempt, generation, generation_id, size from moved
           ), seated as (
             insert into members (job_id, attempt, generation, index, place)
             select m.job_id, m.attempt, m.generation, s.index, s.place
             from moved m join unnest($10::uuid[], $11::int[], $12::int[]) s (job_id, index, place) on s.job_id = m.job_id
           ), training as (
             update attempts a set phase = 'TRAINING' from moved m
             where a.job_id = m.job_id and a.attempt = m.attempt and a.phase = 'LOADING'
           ), told as (
             insert into job_events (job_id, number, kind, message, attempt, generation)
             select job_id, last_event, 'ready', message, attempt, generation from moved
           ) select count(*) as "moved!" from moved"#,
        &beginnings.iter().map(|b| b.live.job.0).collect::<Vec<_>>(),
        &of(|b| b.fence.attempt_i32()),
        &of(|b| b.fence.generation_i32()),
        &beginnings.iter().map(|b| b.fence.generation_id.clone()).collect::<Vec<_>>(),
        &of(|b| convert::to_i32(u32::try_from(b.members.len()).unwrap_or(u32::MAX))),
        &beginnings.iter().map(|b| b.kinds.clone()).collect::<Vec<_>>(),
        &beginnings.iter().map(|b| convert::to_i64(b.ready.total_steps)).collect::<Vec<_>>(),
        &beginnings.iter().map(|b| flops_per_token(b.ready)).collect::<Vec<_>>(),
        &beginnings.iter().map(|b| text(&b.message, events::MAX_MESSAGE)).collect::<Vec<_>>(),
        &seat_job,
        &seat_index,
        &seat_place,
    )
    .fetch_one(tx)
    .await?;
    all_moved(moved, beginnings.len())
}

/// Which of these places were members under these fences of their attempts.
pub async fn members_under(
    tx: &mut PgConnection,
    asked: &[(RunId, Fence)],
) -> Result<HashSet<(RunId, Fence)>, DbError> {
    let of = |value: fn(&RunId) -> i32| asked.iter().map(|(run, _)| value(run)).collect::<Vec<i32>>();
    let jobs: Vec<Uuid> = asked.iter().map(|(run, _)| run.job.0).collect();
    let generations: Vec<i32> = asked.iter().map(|(_, fence)| fence.generation_i32()).collect();
    let ids: Vec<String> = asked.iter().map(|(_, fence)| fence.generation_id.clone()).collect();
    let rows = sqlx::query!(
        r#"select w.job_id as "job_id!", w.attempt as "attempt!", w.place as "place!", w.generation as "generation!",
                  w.generation_id as "generation_id!"
           from unnest($1::uuid[], $2::int[], $3::int[], $4::int[], $5::text[])
             w (job_id, attempt, place, generation, generation_id)
           join members m on m.job_id = w.job_id and m.attempt = w.attempt and m.generation = w.generation
             and m.place = w.place
           join generations g on g.job_id = w.job_id and g.attempt = w.attempt and g.generation = w.generation
             and g.generation_id = w.generation_id"#,
        &jobs,
        &of(|run| convert::to_i32(run.attempt)),
        &of(|run| run.place.to_i32()),
        &generations,
        &ids,
    )
    .fetch_all(tx)
    .await?;
    let members = rows.into_iter().map(|row| {
        let run = run_of(row.job_id, row.attempt, row.place);
        let generation = convert::to_u32(row.generation);
        (run, Fence { attempt: run.attempt, generation, generation_id: row.generation_id })
    });
    Ok(members.collect())
}
