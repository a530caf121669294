//! How attempts end: in success or failure, cancelled, given back, or lost.

use std::collections::HashSet;

use lorafleet_proto::v1 as pb;
use lorafleet_store::CheckpointId;
use sqlx::{PgExecutor, PgPool};

use super::why;
use crate::{
    db::{DbError, Tx},
    events::{self, Event},
    ids::{Fence, JobId, RunId, WorkerId},
    job::{Cause, Illegal, JobState, MemberOutcome, Phase, Yielding, infrastructure_failures},
    leadership::Leadership,
    queue::{self, Live, Look, Place, Success},
};

/// Why a job could not be cancelled, paused or resumed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// There is no such job.
    #[error("there is no such job")]
    NotFound,
    /// Its state does not allow it.
    #[error(transparent)]
    Illegal(#[from] Illegal),
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Ends a job at its user's wish; its members are told to stop.
pub async fn cancel(pool: &PgPool, job: JobId) -> Result<(), ChangeError> {
    cancel_because(pool, job, "cancelled by its user").await
}

/// Ends a job for this reason; its members are told to stop.
pub async fn cancel_because(pool: &PgPool, job: JobId, message: &str) -> Result<(), ChangeError> {
    let mut tx = pool.begin().await.map_err(DbError::from)?;
    let (state, fence) = queue::lock(&mut tx, job).await?.ok_or(ChangeError::NotFound)?;
    let change = state.on(Cause::Cancelled)?;
    queue::transition(&mut tx, job, change, message).await?;
    let fence = change.attempt().map(|_| &fence);
    events::append(&mut tx, job, Event::new("cancelled", message, fence)).await?;
    tx.commit().await.map_err(DbError::from)?;
    Ok(())
}

/// A gang's time for loading is over: it goes on without those that are not ready, or, when that leaves too few, its
/// members are told to stop.
pub async fn give_up_loading(
    pool: &PgPool,
    leadership: &Leadership,
    job: JobId,
    fence: &Fence,
    message: &str,
) -> Result<(), DbError> {
    let mut tx = pool.begin().await?;
    if !leadership.holds(&mut tx).await? {
        return Ok(());
    }
    let Some(live) = queue::lock_live(&mut tx, job, fence).await? else { return Ok(()) };
    if live.phase != Phase::Loading {
        return Ok(());
    }
    let places = queue::places(&mut tx, job, fence).await?;
    let there = || places.iter().filter(|place| place.outcome.is_none());
    if there().filter(|place| place.ready.is_some()).count() < live.min as usize {
        let late = there().filter(|place| place.ready.is_none());
        let names: Vec<String> = late.map(|place| format!("worker {}", place.name)).collect();
        close(&mut tx, &live, &format!("{} {message}", names.join(", "))).await?;
    } else {
        for late in there().filter(|place| place.ready.is_none()) {
            let run = RunId { job, attempt: fence.attempt, place: late.place };
            queue::end_place(&mut tx, late.worker, run, MemberOutcome::Lost, message).await?;
            let message = format!("{} {message}; the gang begins without it", late.name);
            events::append(&mut tx, job, Event::new("lost", message, Some(fence))).await?;
        }
    }
    tx.commit().await?;
    Ok(())
}

/// A gang that loads has become too small: its members are to stop, and the attempt ends when the last has.
pub(super) async fn close(tx: &mut Tx, live: &Live, message: &str) -> Result<(), DbError> {
    queue::close(tx, live.job, message).await?;
    events::append(tx, live.job, Event::new("lost", message, Some(&live.fence))).await
}

/// What a job's end well leaves behind, by the word of a member under `fence`.
pub(super) fn succeeding<'a>(
    (worker, run): (WorkerId, RunId),
    fence: Fence,
    id: CheckpointId,
    checkpoint: &'a pb::Checkpoint,
    succeeded: &pb::Succeeded,
) -> Success<'a> {
    let result =
        pb::JobResult { checkpoint: checkpoint.name.clone(), ..succeeded.result.clone().unwrap_or_default() };
    // Said here too: what a member reported just before its end may come too late to be stored.
    let early =
        if result.stopped_early { ", early: evaluations no longer got better (eval.patience)" } else { "" };
    let message = match succeeded.message.as_str() {
        "" => format!("finished after step {}{early}", id.step()),
        said => said.to_owned(),
    };
    Success { worker, run, fence, id, checkpoint, result, message }
}

/// Ends jobs in success; see [`queue::succeed_all`].
pub(super) async fn succeed_all(
    executor: impl PgExecutor<'_>,
    look: Look,
    successes: &[Success<'_>],
) -> Result<HashSet<RunId>, DbError> {
    let change =
        JobState::Running.on(Cause::Succeeded).map_err(|illegal| DbError::Data(illegal.to_string()))?;
    queue::succeed_all(executor, change, look, successes).await
}

/// Ends an evaluation in success: what it found is its result, and it writes no checkpoint.
pub(super) async fn succeed_evaluation(
    tx: &mut Tx,
    live: &Live,
    succeeded: &pb::Succeeded,
) -> Result<(), DbError> {
    let result = pb::JobResult { checkpoint: String::new(), ..succeeded.result.clone().unwrap_or_default() };
    queue::record_result(tx, live.job, &result).await?;
    end_job(tx, live, Cause::Succeeded, "succeeded", &succeeded.message).await
}

/// Ends an attempt whose members are all gone: back to the queue, or failed when that happened too often.
pub(super) async fn dissolve(
    tx: &mut Tx,
    live: &Live,
    places: &[Place],
    released: bool,
) -> Result<(), DbError> {
    if released {
        return give_back(tx, live).await;
    }
    let made_new_step = live.step > live.steps_before;
    let (failures, exhausted) = infrastructure_failures(live.infrastructure_failures, made_new_step);
    queue::record_failures(tx, live.job, failures).await?;
    let ended = why::ended(places);
    let why = if live.message.is_empty() { &ended } else { &live.message };
    let (kind, message) = if exhausted {
        let message = format!(
            "{failures} attempts in a row lost their workers without a new finished step: the job seems to kill its \
             workers (out of memory? try a smaller micro_tokens); the last one: {why}"
        );
        ("failed", message)
    } else {
        let attempt = live.fence.attempt;
        ("queued", format!("attempt {attempt} lost its gang ({why}); it resumes from its last checkpoint"))
    };
    end_job(tx, live, Cause::Lost { exhausted }, kind, &message).await?;
    if live.yielding == Some(Yielding::Pause) && !exhausted {
        let change =
            JobState::Queued.on(Cause::Paused).map_err(|illegal| DbError::Data(illegal.to_string()))?;
        let message =
            "paused by its user; its workers were lost meanwhile, so it goes on from its last checkpoint";
        queue::transition(tx, live.job, change, message).await?;
        events::append(tx, live.job, Event::new("paused", message, None)).await?;
    }
    Ok(())
}

/// The gang left politely, and the last of it wrote a checkpoint if there was a step to keep.
async fn give_back(tx: &mut Tx, live: &Live) -> Result<(), DbError> {
    let (cause, kind, message) = match live.yielding {
        None => (Cause::Released, "queued", "its workers gave it back; it resumes where it was"),
        Some(Yielding::Pause) => (
            Cause::Paused,
            "paused",
            "paused by its user; it keeps every step, and goes on when it is resumed",
        ),
        Some(Yielding::Preempt) => {
            queue::record_preemption(tx, live.job).await?;
            (Cause::Preempted, "preempted", "gave way to a job of higher priority; it resumes where it was")
        }
    };
    end_job(tx, live, cause, kind, message).await
}

/// The job failed by its own doing: it is tried again after a pause where that may heal and it has tries left.
pub(super) async fn fail(tx: &mut Tx, live: &Live, failed: &pb::Failed) -> Result<(), DbError> {
    let (used, allowed) = queue::retries(tx, live.job).await?;
    if !failed.may_heal || used >= allowed {
        let after = match (failed.may_heal, used) {
            (true, 1) => " (after 1 retry)".to_owned(),
            (true, 2..) => format!(" (after {used} retries)"),
            _ => String::new(),
        };
        return end_job(tx, live, Cause::Failed, "failed", &format!("{}{after}", failed.message)).await;
    }
    let pause = super::backoff::pause(used + 1, draw());
    queue::record_retry(tx, live.job, pause).await?;
    let message = format!(
        "{}; retry {} of {allowed} comes in {} s, from its last checkpoint",
        failed.message,
        used + 1,
        pause.as_secs().max(1)
    );
    end_job(tx, live, Cause::Retried, "retrying", &message).await
}

/// From 0 to below 1: of a random UUID's bits, which are there anyway.
fn draw() -> f64 {
    let (_, bits) = uuid::Uuid::new_v4().as_u64_pair();
    f64::from(u32::try_from(bits & 0xffff_ffff).unwrap_or(0)) / (f64::from(u32::MAX) + 1.0)
}

/// Moves the job and its attempt on, with an event.
pub(super) async fn end_job(
    tx: &mut Tx,
    live: &Live,
    cause: Cause,
    kind: &str,
    message: &str,
) -> Result<(), DbError> {
    let change = JobState::Running.on(cause).map_err(|illegal| DbError::Data(illegal.to_string()))?;
    queue::transition(tx, live.job, change, message).await?;
    events::append(tx, live.job, Event::new(kind, message, Some(&live.fence))).await
}
