//! What the scheduler does to a gang that trains: lets a worker join it, or asks one to leave.

use sqlx::PgPool;

use super::start::{add_place, leave};
use crate::{
    db::DbError,
    ids::{JobId, PlaceNo, RunId},
    job::JobState,
    leadership::Leadership,
    queue,
    scheduler::Place,
};

/// Lets one more worker into a job's gang. `None`: the gang trains no more, the worker takes no work, or this
/// coordinator leads no more. An error of a unique index: the slot is taken, or the worker is in the gang.
pub async fn grow(
    pool: &PgPool,
    leadership: &Leadership,
    job: JobId,
    place: Place,
) -> Result<Option<PlaceNo>, DbError> {
    let mut tx = pool.begin().await?;
    if !leadership.holds(&mut tx).await? {
        return Ok(None);
    }
    let Some((JobState::Running, fence)) = queue::lock(&mut tx, job).await? else { return Ok(None) };
    let number = add_place(&mut tx, job, &fence, place).await?;
    tx.commit().await?;
    Ok(number)
}

/// Asks a place's holder to give it back. False: it is not live or was asked before, or this coordinator leads no more.
pub async fn shrink(
    pool: &PgPool,
    leadership: &Leadership,
    run: RunId,
    reason: &str,
) -> Result<bool, DbError> {
    let mut tx = pool.begin().await?;
    if !leadership.holds(&mut tx).await? {
        return Ok(false);
    }
    let asked = leave(&mut tx, run, reason).await?;
    tx.commit().await?;
    Ok(asked)
}
