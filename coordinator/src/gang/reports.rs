//! What members report while they train: checkpoints, events, and that they have parted.

use lorafleet_proto::v1 as pb;
use sqlx::PgPool;

use super::{
    Fenced,
    advance::{Advance, Moment, advance_locked},
};
use crate::{
    checkpoints,
    db::DbError,
    events::{self, Event},
    ids::{Fence, JobId, WorkerId},
    queue,
};

/// Stores a checkpoint's row. It may have been written under an earlier generation of the attempt, as long as its
/// writer holds its place. Done with the ids that the keep rule lets go.
pub async fn checkpoint_written(
    pool: &PgPool,
    worker: WorkerId,
    job: JobId,
    fence: &Fence,
    checkpoint: &pb::Checkpoint,
) -> Result<Fenced<Vec<String>>, DbError> {
    let Some(id) = checkpoints::belongs_to(checkpoint, job, fence) else { return Ok(Fenced::Stale) };
    let mut tx = pool.begin().await?;
    let live = queue::lock_running(&mut tx, job).await?.filter(|live| live.fence.attempt == fence.attempt);
    let Some(live) = live else { return Ok(Fenced::Stale) };
    if fence.generation == 0 || !queue::is_member(&mut tx, worker, job, fence).await? {
        return Ok(Fenced::Stale);
    }
    let made = checkpoints::insert(&mut tx, job, &id, checkpoint, false).await?;
    let expired = if made {
        let message = format!("step {} is in the store", id.step());
        events::append(&mut tx, job, Event::new("checkpoint", message, Some(&live.fence))).await?;
        checkpoints::expire(&mut tx, job).await?
    } else {
        checkpoints::expired(&mut tx, job).await?
    };
    tx.commit().await?;
    Ok(Fenced::Done(expired))
}

/// Stores an event that members report; of those with one key, the first is stored.
pub async fn report(
    pool: &PgPool,
    worker: WorkerId,
    job: JobId,
    fence: &Fence,
    report: &pb::ReportEvent,
) -> Result<Fenced<()>, DbError> {
    let mut tx = pool.begin().await?;
    let live = queue::lock_live(&mut tx, job, fence).await?;
    if live.is_none() || !queue::is_member(&mut tx, worker, job, fence).await? {
        return Ok(Fenced::Stale);
    }
    if !events::is_reported(&mut tx, job, fence.attempt, &report.key).await? {
        let event = Event {
            kind: &report.kind,
            message: report.message.clone(),
            fence: Some(fence),
            key: Some(&report.key),
        };
        events::append(&mut tx, job, event).await?;
    }
    tx.commit().await?;
    Ok(Fenced::Done(()))
}

/// A member has left the collective of its generation and waits for the next one. Stale: the generation is not the
/// current one, so there is nothing to wait for.
pub async fn parted(
    pool: &PgPool,
    moment: Moment<'_>,
    worker: WorkerId,
    job: JobId,
    fence: &Fence,
    parted: &pb::Parted,
) -> Result<Fenced<Advance>, DbError> {
    let mut tx = pool.begin().await?;
    let Some(live) = queue::lock_live(&mut tx, job, fence).await? else { return Ok(Fenced::Stale) };
    if !queue::set_parted(&mut tx, worker, job, fence, parted).await? {
        return Ok(Fenced::Stale);
    }
    let advance = advance_locked(&mut tx, moment, &live).await?;
    tx.commit().await?;
    Ok(Fenced::Done(advance))
}
