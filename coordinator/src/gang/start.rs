//! How attempts get their places: started with a gang, grown, and asked to give places back.

use sqlx::PgPool;

use super::{count, text_list};
use crate::{
    db::{DbError, Tx},
    events::{self, Event},
    ids::{Fence, JobId, PlaceNo, RunId},
    job::{Cause, Phase},
    leadership::Leadership,
    queue,
    scheduler::Place,
};

/// Starts an attempt of a queued job on a gang: job, attempt and places in one transaction. False when somebody was
/// faster, a worker of the plan is gone, or this coordinator leads no more.
pub async fn start(
    pool: &PgPool,
    leadership: &Leadership,
    job: JobId,
    places: &[Place],
) -> Result<bool, DbError> {
    match try_start(pool, leadership, job, places).await {
        // Another coordinator gave one of the slots away, or started the job, at the same instant.
        Err(error) if error.unique_violation().is_some() => Ok(false),
        other => other,
    }
}

async fn try_start(
    pool: &PgPool,
    leadership: &Leadership,
    job: JobId,
    places: &[Place],
) -> Result<bool, DbError> {
    let mut tx = pool.begin().await?;
    if !leadership.holds(&mut tx).await? {
        return Ok(false);
    }
    let Some((state, before)) = queue::lock(&mut tx, job).await? else { return Ok(false) };
    let Ok(change) = state.on(Cause::Started) else { return Ok(false) };
    let fence = Fence::loading(before.attempt + 1);
    if !queue::transition(&mut tx, job, change, "").await? {
        return Ok(false);
    }
    let opened = queue::open_attempt(&mut tx, job, &fence, places.len()).await?;
    for place in places {
        if queue::add_place(&mut tx, job, fence.attempt, *place).await?.is_none() {
            return Ok(false);
        }
    }
    let placed = queue::places(&mut tx, job, &fence).await?;
    let names = text_list(placed.iter().map(|place| place.name.as_str()));
    let message = format!("attempt {} on {}: {names}", fence.attempt, count(places.len(), "worker"));
    events::append(&mut tx, job, Event::new("started", message, Some(&fence))).await?;
    tx.commit().await?;
    if fence.attempt == 1 {
        crate::metrics::queue_wait(opened.waited);
    }
    Ok(true)
}

/// Lets one more worker into a gang that trains under `fence`: it gets a place, loads, and becomes a member at the next
/// change of generation. `None`: the gang has changed, or the worker takes no work. An error of a unique index: the slot
/// is taken, or the worker is in the gang.
pub async fn add_place(
    tx: &mut Tx,
    job: JobId,
    fence: &Fence,
    place: Place,
) -> Result<Option<PlaceNo>, DbError> {
    let Some(live) = queue::lock_live(tx, job, fence).await? else { return Ok(None) };
    if live.phase != Phase::Training {
        return Ok(None);
    }
    queue::add_place(tx, job, fence.attempt, place).await
}

/// Asks a place's holder to give it back at the next step boundary. False: it is not live, or was asked before.
pub async fn leave(tx: &mut Tx, run: RunId, reason: &str) -> Result<bool, DbError> {
    queue::set_leaving(tx, run, reason).await
}
