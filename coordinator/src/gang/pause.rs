//! Takes jobs off their workers with every step kept: paused by their users, or preempted for others.

use sqlx::PgPool;

use super::end::ChangeError;
use crate::{
    db::{DbError, Tx},
    events::{self, Event},
    ids::{Fence, JobId, RunId},
    job::{Cause, Illegal, JobState, Phase, Yielding},
    leadership::Leadership,
    queue,
};

/// Pauses a job at its user's wish: a queued one at once; the workers of a running one are asked to leave, and it is
/// paused when the last has. Nothing happens to one that is paused, or is about to be.
pub async fn pause(pool: &PgPool, job: JobId) -> Result<(), ChangeError> {
    let mut tx = pool.begin().await.map_err(DbError::from)?;
    let (state, fence) = queue::lock(&mut tx, job).await?.ok_or(ChangeError::NotFound)?;
    match state {
        JobState::Paused => return Ok(()),
        JobState::Running => {
            let message = "is about to pause: its workers write a checkpoint and leave";
            if queue::yielding(&mut tx, job).await? == Some(Yielding::Pause) {
                return Ok(());
            }
            give_way(&mut tx, job, &fence, Yielding::Pause, message, "its user pauses the job").await?;
            events::append(&mut tx, job, Event::new("pausing", message, Some(&fence))).await?;
        }
        state => {
            let change = state.on(Cause::Paused)?;
            let message = "paused by its user";
            queue::transition(&mut tx, job, change, message).await?;
            events::append(&mut tx, job, Event::new("paused", message, None)).await?;
        }
    }
    tx.commit().await.map_err(DbError::from)?;
    Ok(())
}

/// Puts a paused job back into the queue. Of one whose workers have not left yet, the pause is withdrawn: it goes back
/// to the queue when they have.
pub async fn resume(pool: &PgPool, job: JobId) -> Result<(), ChangeError> {
    let mut tx = pool.begin().await.map_err(DbError::from)?;
    let (state, fence) = queue::lock(&mut tx, job).await?.ok_or(ChangeError::NotFound)?;
    if state == JobState::Running {
        if queue::yielding(&mut tx, job).await? != Some(Yielding::Pause) {
            return Err(Illegal { from: state, cause: Cause::Resumed }.into());
        }
        let message = "the pause was withdrawn; it goes back to the queue when its workers have left";
        queue::set_yielding(&mut tx, job, None, message).await?;
        events::append(&mut tx, job, Event::new("resumed", message, Some(&fence))).await?;
    } else {
        queue::transition(&mut tx, job, state.on(Cause::Resumed)?, "").await?;
        events::append(&mut tx, job, Event::new("resumed", "resumed by its user", None)).await?;
        queue::hold_if_needed(&mut tx, job).await?;
    }
    tx.commit().await.map_err(DbError::from)?;
    Ok(())
}

/// Asks a running job's workers to leave for a job of higher priority; it is counted when the last has. False: it does
/// not train, it gives way already, or this coordinator leads no more.
pub async fn preempt(
    pool: &PgPool,
    leadership: &Leadership,
    job: JobId,
    for_job: JobId,
) -> Result<bool, DbError> {
    let mut tx = pool.begin().await?;
    if !leadership.holds(&mut tx).await? {
        return Ok(false);
    }
    let Some(live) = queue::lock_running(&mut tx, job).await? else { return Ok(false) };
    if live.yielding.is_some() || live.phase != Phase::Training {
        return Ok(false);
    }
    let message = format!("gives way to {}, which has a higher priority", for_job.name());
    let reason = format!("{}, of higher priority, needs the worker", for_job.name());
    give_way(&mut tx, job, &live.fence, Yielding::Preempt, &message, &reason).await?;
    events::append(&mut tx, job, Event::new("preempting", message, Some(&live.fence))).await?;
    tx.commit().await?;
    Ok(true)
}

/// Asks every place of the live attempt to be given back.
async fn give_way(
    tx: &mut Tx,
    job: JobId,
    fence: &Fence,
    yielding: Yielding,
    message: &str,
    reason: &str,
) -> Result<(), DbError> {
    queue::set_yielding(tx, job, Some(yielding), message).await?;
    for place in queue::places(tx, job, fence).await?.iter().filter(|place| place.outcome.is_none()) {
        let run = RunId { job, attempt: fence.attempt, place: place.place };
        queue::set_leaving(tx, run, reason).await?;
    }
    Ok(())
}
