//! A gang of one is complete when its only member is: it begins by one statement.

use std::collections::HashMap;

use lorafleet_proto::v1 as pb;
use sqlx::{PgPool, types::Json};
use uuid::Uuid;

use super::{
    attempts::flops_per_token,
    places::{Runs, run_of},
};
use crate::{
    convert,
    db::{DbError, text},
    events,
    ids::{Fence, RunId, WorkerId},
};

/// The first generation of a gang of one.
#[derive(Clone, Debug)]
pub struct Single<'a> {
    /// Its member.
    pub worker: WorkerId,
    /// The member's place.
    pub run: RunId,
    /// What it loaded.
    pub ready: &'a pb::Ready,
    /// The generation's fence.
    pub fence: Fence,
    /// The event's words.
    pub message: String,
}

/// The member of a gang of one that began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Its name.
    pub name: String,
    /// host:port of its collective.
    pub address: String,
}

/// Stores what the only members of first attempts loaded, and opens their first generations, each told by an event; those
/// that began. The others are no such gangs, or something happened to them at this instant: nothing was written of them.
pub async fn begin_alone(pool: &PgPool, singles: &[Single<'_>]) -> Result<HashMap<RunId, Begun>, DbError> {
    let runs = Runs::of(singles.iter().map(|single| (single.worker, single.run)));
    let ready: Vec<Json<&pb::Ready>> = singles.iter().map(|single| Json(single.ready)).collect();
    let generation: Vec<String> = singles.iter().map(|single| single.fence.generation_id.clone()).collect();
    let steps: Vec<i64> = singles.iter().map(|single| convert::to_i64(single.ready.total_steps)).collect();
    let flops: Vec<f64> = singles.iter().map(|single| flops_per_token(single.ready)).collect();
    let message: Vec<String> =
        singles.iter().map(|single| text(&single.message, events::MAX_MESSAGE)).collect();
    // What is read beside the locked row is as old as the statement, so it must not have waited for the lock: then the
    // row would have another event.
    let rows = sqlx::query!(
        r#"with new as (
             select * from unnest($1::uuid[], $2::int[], $3::uuid[], $4::jsonb[], $5::text[], $6::bigint[], $7::text[], $8::float8[])
               n (job_id, place, worker_id, ready, generation_id, total_steps, message, flops_per_token)
           ), locked as materialized (
             select job_id, last_event from jobs where job_id = any($1) order by job_id for no key update
           ), alone as (
             select n.*, p.worker, p.address, p.kind
             from new n join locked l on l.job_id = n.job_id
             join jobs j on j.job_id = n.job_id and j.last_event = l.last_event
             join attempts a on a.job_id = n.job_id and a.attempt = 1 and a.phase = 'LOADING'
             join places p on p.job_id = n.job_id and p.attempt = 1 and p.place = n.place and p.worker_id = n.worker_id
             where j.state = 'RUNNING' and j.attempt = 1 and j.generation = 0 and j.workers_min = 1 and p.live
               and p.ready is null and not exists (
                 select 1 from places o where o.job_id = n.job_id and o.attempt = 1 and o.place <> n.place)
           ), moved as (
             update jobs j set generation = 1, generation_id = a.generation_id, world_size = 1, kinds = a.kind,
                    total_steps = a.total_steps, flops_per_token = a.flops_per_token, last_event = j.last_event + 1
             from alone a where j.job_id = a.job_id
             returning j.job_id, j.last_event, a.place, a.generation_id, a.message, a.worker, a.address
           ), said as (
             update places p set ready = a.ready from alone a
             where p.job_id = a.job_id and p.attempt = 1 and p.place = a.place
           ), opened as (
             insert into generations (job_id, attempt, generation, generation_id, world_size)
             select job_id, 1, 1, generation_id, 1 from moved
           ), seated as (
             insert into members (job_id, attempt, generation, index, place) select job_id, 1, 1, 0, place from moved
           ), training as (
             update attempts t set phase = 'TRAINING' from moved m where t.job_id = m.job_id and t.attempt = 1
           ), told as (
             insert into job_events (job_id, number, kind, message, attempt, generation)
             select job_id, last_event, 'ready', message, 1, 1 from moved
           ) select job_id as "job_id!", place as "place!", worker as "worker!", address as "address!" from moved"#,
        &runs.job as &[Uuid],
        &runs.place,
        &runs.worker,
        &ready as _,
        &generation,
        &steps,
        &message,
        &flops,
    )
    .fetch_all(pool)
    .await?;
    let begun = rows
        .into_iter()
        .map(|row| (run_of(row.job_id, 1, row.place), Begun { name: row.worker, address: row.address }));
    Ok(begun.collect())
}
