//! Many jobs that end well by one statement: jobs, attempts, places, final checkpoints, results and events.

use std::collections::HashSet;

use lorafleet_proto::v1 as pb;
use lorafleet_store::CheckpointId;
use sqlx::{PgExecutor, types::Json};

use super::places::{Runs, run_of};
use crate::{
    convert,
    db::{DbError, text},
    events,
    ids::{Fence, RunId, WorkerId},
    job::{AttemptState, Transition},
    metrics,
};

/// A job that ends well by a member's word.
#[derive(Clone, Debug)]
pub struct Success<'a> {
    /// The member.
    pub worker: WorkerId,
    /// Its place.
    pub run: RunId,
    /// The fence that the job must have.
    pub fence: Fence,
    /// Its final checkpoint's id.
    pub id: CheckpointId,
    /// Its final checkpoint.
    pub checkpoint: &'a pb::Checkpoint,
    /// What came of it.
    pub result: pb::JobResult,
    /// The event's words.
    pub message: String,
}

/// Whether somebody has looked at the members already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Only the words of live members of training generations count.
    Here,
    /// The caller holds the jobs' locks, knows that the words count, and has ended the places.
    Done,
}

/// Ends jobs well; those that were as they should be. Of the others nothing was written: the fence is another, or
/// something happened to them at this instant.
pub async fn succeed_all(
    executor: impl PgExecutor<'_>,
    change: Transition,
    look: Look,
    successes: &[Success<'_>],
) -> Result<HashSet<RunId>, DbError> {
    if successes.is_empty() {
        return Ok(HashSet::new());
    }
    let runs = Runs::of(successes.iter().map(|s| (s.worker, s.run)));
    let texts = |value: fn(&Success<'_>) -> String| successes.iter().map(value).collect::<Vec<String>>();
    // What is read beside the locked row is as old as the statement, so it must not have waited for the lock: then the
    // row would have another event.
    let rows = sqlx::query!(
        r#"with new as (
             select * from unnest($5::uuid[], $6::int[], $7::int[], $8::uuid[], $9::int[], $10::text[], $11::text[],
               $12::bigint[], $13::int[], $14::jsonb[], $15::text[], $16::bool[], $17::bigint[], $18::json[], $19::text[])
               n (job_id, attempt, place, worker_id, generation, generation_id, name, step, written_generation, files,
                  manifest_sha256, best, bytes, result, message)
           ), locked as materialized (
             select job_id, last_event from jobs where job_id = any($5) order by job_id for no key update
           ), counting as (
             select n.*, j.tenant_id
             from new n join locked l on l.job_id = n.job_id
             join jobs j on j.job_id = n.job_id and j.last_event = l.last_event
             join attempts a on a.job_id = n.job_id and a.attempt = n.attempt and a.state = 'RUNNING'
             join places p on p.job_id = n.job_id and p.attempt = n.attempt and p.place = n.place and p.worker_id = n.worker_id
             where j.state = $1 and j.attempt = n.attempt and j.generation = n.generation
               and j.generation_id = n.generation_id
               and ($4 or (p.live and a.phase = 'TRAINING' and exists (
                 select 1 from members m where m.job_id = n.job_id and m.attempt = n.attempt
                   and m.generation = n.generation and m.place = n.place)))
           ), freed as (
             update places p set live = false, outcome = 'SUCCEEDED', message = '', end_time = now() from counting n
             where p.job_id = n.job_id and p.attempt = n.attempt and p.place = n.place and p.live
           ), stored as (
             insert into checkpoints (job_id, name, step, attempt, generation, files, manifest_sha256, final, best, bytes,
                                      tenant_id)
             select job_id, name, step, attempt, written_generation, files, manifest_sha256, true, best, bytes, tenant_id
             from counting
             on conflict (job_id, name) do update
               set final = true, best = checkpoints.best or excluded.best, expired = false
           ), passed as (
             update checkpoints c set best = false from counting n
             where n.best and c.job_id = n.job_id and c.best and c.name <> n.name
           ), ended as (
             update attempts a set state = $3, phase = 'ENDED', message = n.message, end_time = now()
             from counting n where a.job_id = n.job_id and a.attempt = n.attempt
             returning a.job_id, extract(epoch from now() - a.start_time)::float8 as seconds
           ), moved as (
             update jobs j set state = $2, state_message = n.message, step = greatest(j.step, n.step), result = n.result,
                    world_size = 0, queue_position = null, start_estimate_seconds = null, yielding = null,
                    run_seconds = j.run_seconds + e.seconds, end_time = now(), last_event = j.last_event + 1
             from counting n join ended e on e.job_id = n.job_id where j.job_id = n.job_id
             returning j.job_id, j.last_event, n.attempt, n.place, n.generation, n.message
           ), settled as (
             update job_dependencies d set ended = true from moved m where d.after_job_id = m.job_id and not d.ended
           ), told as (
             insert into job_events (job_id, number, kind, message, attempt, generation)
             select job_id, last_event, 'succeeded', message, attempt, generation from moved
           ) select job_id as "job_id!", attempt as "attempt!", place as "place!" from moved"#,
        change.from().as_str(),
        change.to().as_str(),
        change.attempt().map(AttemptState::as_str),
        look == Look::Done,
        &runs.job,
        &runs.attempt,
        &runs.place,
        &runs.worker,
        &successes.iter().map(|s| s.fence.generation_i32()).collect::<Vec<_>>(),
        &texts(|s| s.fence.generation_id.clone()),
        &texts(|s| s.id.to_string()),
        &successes.iter().map(|s| convert::to_i64(s.id.step())).collect::<Vec<_>>(),
        &successes.iter().map(|s| Fence::from(s.id.fence()).generation_i32()).collect::<Vec<_>>(),
        &successes.iter().map(|s| Json(&s.checkpoint.files)).collect::<Vec<_>>() as _,
        &texts(|s| s.checkpoint.manifest_sha256.clone()),
        &successes.iter().map(|s| s.checkpoint.best).collect::<Vec<_>>(),
        &successes.iter().map(|s| bytes(s.checkpoint)).collect::<Vec<_>>(),
        &successes.iter().map(|s| Json(&s.result)).collect::<Vec<_>>() as _,
        &texts(|s| text(&s.message, events::MAX_MESSAGE)),
    )
    .fetch_all(executor)
    .await?;
    rows.iter().for_each(|_| metrics::transition(change));
    Ok(rows.into_iter().map(|row| run_of(row.job_id, row.attempt, row.place)).collect())
}

/// Of all files.
fn bytes(checkpoint: &pb::Checkpoint) -> i64 {
    convert::to_i64(checkpoint.files.iter().map(|file| file.size_bytes).sum())
}
