//! How attempts get their places: started with a gang, grown, and asked to give places back.

use sqlx::PgPool;

use crate::{
    db::{DbError, Tx},
    ids::{Fence, JobId, PlaceNo, RunId},
    job::{Cause, JobState, Phase},
    leadership::Leadership,
    metrics, queue,
    scheduler::Place,
};

/// Starts an attempt of each of these queued jobs on its gang: jobs, attempts and places in one transaction. Returns
/// those that were started: not where somebody was faster, a worker of the plan is gone, or this coordinator leads no
/// more.
pub async fn start_all(
    pool: &PgPool,
    leadership: &Leadership,
    jobs: &[(JobId, &[Place])],
) -> Result<Vec<JobId>, DbError> {
    let mut started = Vec::new();
    match start_together(pool, leadership, jobs).await {
        // Another coordinator gave one of the slots away at the same instant: the others start without that job.
        Err(error) if error.unique_violation().is_some() && jobs.len() > 1 => {
            for job in jobs {
                match start_together(pool, leadership, std::slice::from_ref(job)).await {
                    Err(error) if error.unique_violation().is_some() => {}
                    other => started.extend(other?),
                }
            }
        }
        Err(error) if error.unique_violation().is_some() => {}
        other => started.extend(other?),
    }
    Ok(started)
}

async fn start_together(
    pool: &PgPool,
    leadership: &Leadership,
    jobs: &[(JobId, &[Place])],
) -> Result<Vec<JobId>, DbError> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let change = JobState::Queued.on(Cause::Started).map_err(|illegal| DbError::Data(illegal.to_string()))?;
    let started = queue::start_all(pool, leadership, change, jobs).await?;
    for job in &started {
        metrics::transition(change);
        if job.attempt == 1 {
            metrics::queue_wait(job.waited);
        }
    }
    Ok(started.into_iter().map(|started| started.job).collect())
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
