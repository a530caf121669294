//! What time and other jobs do to a job: it comes due, its time is over, what it comes after has ended.

use sqlx::PgPool;

use crate::{
    db::{DbError, Tx},
    events::{self, Event},
    ids::JobId,
    job::{Cause, JobState},
    leadership::Leadership,
    queue::{self, Overdue},
};

/// Fails a job whose time is over. False: it has ended meanwhile, or this coordinator leads no more.
pub async fn end_overdue(pool: &PgPool, leadership: &Leadership, overdue: &Overdue) -> Result<bool, DbError> {
    let mut tx = pool.begin().await?;
    if !leadership.holds(&mut tx).await? {
        return Ok(false);
    }
    let Some((state, fence)) = queue::lock(&mut tx, overdue.job).await? else { return Ok(false) };
    if overdue.only_running && state != JobState::Running {
        return Ok(false);
    }
    let Ok(change) = state.on(Cause::Failed) else { return Ok(false) };
    queue::transition(&mut tx, overdue.job, change, &overdue.message).await?;
    let fence = change.attempt().map(|_| &fence);
    events::append(&mut tx, overdue.job, Event::new("failed", overdue.message.as_str(), fence)).await?;
    tx.commit().await?;
    Ok(true)
}

/// Lets a held job be started whose time has come. False: it is held no more, or this coordinator leads no more.
pub async fn release(pool: &PgPool, leadership: &Leadership, job: JobId) -> Result<bool, DbError> {
    let mut tx = pool.begin().await?;
    if !leadership.holds(&mut tx).await? || !queue::release(&mut tx, job).await? {
        return Ok(false);
    }
    events::append(&mut tx, job, Event::new("due", "may start now; it waits for workers", None)).await?;
    tx.commit().await?;
    Ok(true)
}

/// Draws the consequence for a job of the end of others that it comes after: it waits for one less, or is cancelled with
/// one that did not succeed. False: there was nothing to do, or this coordinator leads no more.
pub async fn settle(pool: &PgPool, leadership: &Leadership, job: JobId) -> Result<bool, DbError> {
    let mut tx = pool.begin().await?;
    if !leadership.holds(&mut tx).await? {
        return Ok(false);
    }
    let Some((state, _)) = queue::lock(&mut tx, job).await? else { return Ok(false) };
    let ended = queue::settle_dependencies(&mut tx, job).await?;
    if ended.is_empty() {
        return Ok(false);
    }
    if !state.is_terminal() {
        match ended.iter().find(|other| other.state != JobState::Succeeded) {
            Some(other) => cancel_with(&mut tx, job, state, other).await?,
            None => {
                let names: Vec<String> = ended.iter().map(|other| other.job.name()).collect();
                let message = format!("{} succeeded", names.join(", "));
                events::append(&mut tx, job, Event::new("dependency", message, None)).await?;
                queue::come_due(&mut tx, job).await?;
            }
        }
    }
    tx.commit().await?;
    Ok(true)
}

async fn cancel_with(
    tx: &mut Tx,
    job: JobId,
    state: JobState,
    other: &queue::EndedDependency,
) -> Result<(), DbError> {
    let change = state.on(Cause::Cancelled).map_err(|illegal| DbError::Data(illegal.to_string()))?;
    let how = if other.state == JobState::Failed { "failed" } else { "was cancelled" };
    let message =
        format!("cancelled: {} ({}), which it comes after, {how}", other.job.name(), other.display_name);
    queue::transition(tx, job, change, &message).await?;
    events::append(tx, job, Event::new("cancelled", message, None)).await
}
