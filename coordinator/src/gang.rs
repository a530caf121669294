//! The life of an attempt: each thing that can happen to it is one short transaction, guarded by the fence.

use lorafleet_proto::v1 as pb;
use sqlx::PgPool;

use crate::{
    checkpoints,
    db::{DbError, Tx},
    events::{self, Event},
    ids::{Fence, JobId, WorkerId},
    job::{AttemptState, Cause, Illegal, MemberOutcome, Phase, dissolved, infrastructure_failures},
    leadership::Leadership,
    queue::{self, Live, Member},
    scheduler::Place,
};

/// The answer to a write that a worker caused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fenced<T> {
    /// It was stored (or had been before).
    Done(T),
    /// The fence is not the job's any more, or the worker is no live member under it: nothing was written.
    Stale,
}

/// Why a job could not be cancelled.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    /// There is no such job.
    #[error("there is no such job")]
    NotFound,
    /// It has ended.
    #[error(transparent)]
    Illegal(#[from] Illegal),
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Starts an attempt of a queued job on a gang: job, attempt, generation and places in one transaction. False when
/// somebody was faster, a worker of the plan is gone, or this coordinator leads no more.
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
    let fence = Fence::loading(before.attempt + 1).next(0);
    if !queue::transition(&mut tx, job, change, "").await? {
        return Ok(false);
    }
    let Some(opened) = queue::open_attempt(&mut tx, job, &fence, places).await? else { return Ok(false) };
    let names = opened.workers.join(", ");
    let message = format!("attempt {} on {}: {names}", fence.attempt, count(places.len(), "worker"));
    events::append(&mut tx, job, Event::new("started", message, Some(&fence))).await?;
    if !opened.kinds_before.is_empty() && opened.kinds_before != opened.kinds {
        let message = format!(
            "the workers are of another kind ({}) than before ({}): the adapter's last bits may differ",
            opened.kinds, opened.kinds_before
        );
        events::append(&mut tx, job, Event::new("kind-changed", message, Some(&fence))).await?;
    }
    tx.commit().await?;
    if fence.attempt == 1 {
        crate::metrics::queue_wait(opened.waited);
    }
    Ok(true)
}

/// Lets a gang train once every member is ready: they must agree about what they loaded, or the job fails. False when
/// there is nothing to do.
pub async fn begin(pool: &PgPool, job: JobId, fence: &Fence) -> Result<bool, DbError> {
    let resume = checkpoints::resumable(pool, job, fence.attempt).await?;
    let start_step = resume.first().map_or(0, |checkpoint| checkpoint.step);
    let mut tx = pool.begin().await?;
    let Some(live) = queue::lock_live(&mut tx, job, fence).await? else { return Ok(false) };
    let members = queue::members(&mut tx, job, fence).await?;
    let ready: Option<Vec<&pb::Ready>> = members.iter().map(|member| member.ready.as_ref()).collect();
    let Some([first, ..]) = ready.as_deref() else { return Ok(false) };
    if live.phase != Phase::Loading || members.iter().any(|member| member.outcome.is_some()) {
        return Ok(false);
    }
    if let Some(disagreement) = disagreement(&members) {
        end_job(&mut tx, &live, Cause::Failed, "failed", &disagreement).await?;
    } else {
        queue::begin_training(&mut tx, job, start_step, first.total_steps).await?;
        let message = ready_message(first, members.len(), start_step);
        events::append(&mut tx, job, Event::new("ready", message, Some(fence))).await?;
    }
    tx.commit().await?;
    Ok(true)
}

/// Stores a checkpoint's row. Done with the ids that the keep rule lets go.
pub async fn checkpoint_written(
    pool: &PgPool,
    worker: WorkerId,
    job: JobId,
    fence: &Fence,
    checkpoint: &pb::Checkpoint,
) -> Result<Fenced<Vec<String>>, DbError> {
    let Some(id) = checkpoints::belongs_to(checkpoint, job, fence) else { return Ok(Fenced::Stale) };
    let mut tx = pool.begin().await?;
    if lock_member(&mut tx, worker, job, fence).await?.is_none() {
        return Ok(Fenced::Stale);
    }
    let made = checkpoints::insert(&mut tx, job, &id, checkpoint, false).await?;
    let expired = if made {
        let message = format!("step {} is in the store", id.step());
        events::append(&mut tx, job, Event::new("checkpoint", message, Some(fence))).await?;
        checkpoints::expire(&mut tx, job).await?
    } else {
        checkpoints::expired(&mut tx, job).await?
    };
    tx.commit().await?;
    Ok(Fenced::Done(expired))
}

/// Stores an event that a member reports; a repeated report is stored once.
pub async fn report(
    pool: &PgPool,
    worker: WorkerId,
    job: JobId,
    fence: &Fence,
    report: &pb::ReportEvent,
) -> Result<Fenced<()>, DbError> {
    let mut tx = pool.begin().await?;
    let Some((_, index)) = lock_member(&mut tx, worker, job, fence).await? else { return Ok(Fenced::Stale) };
    if !events::is_reported(&mut tx, job, fence, index, report.sequence).await? {
        let reported = Some((index, report.sequence));
        let event =
            Event { kind: &report.kind, message: report.message.clone(), fence: Some(fence), reported };
        events::append(&mut tx, job, event).await?;
    }
    tx.commit().await?;
    Ok(Fenced::Done(()))
}

/// A member's part is over. Under a fence that is no longer live this only frees its slot. Stale: nothing was known of
/// it, or what it claims came too late to count.
pub async fn finished(
    pool: &PgPool,
    worker: WorkerId,
    job: JobId,
    fence: &Fence,
    outcome: &pb::finished::Outcome,
) -> Result<Fenced<()>, DbError> {
    let mut tx = pool.begin().await?;
    let live = queue::lock_live(&mut tx, job, fence).await?;
    let (member, message) = member_outcome(outcome);
    let index = queue::is_member(&mut tx, worker, job, fence).await?;
    if !queue::end_member(&mut tx, worker, job, fence, member, &message).await? {
        return Ok(Fenced::Stale);
    }
    let claims = matches!(outcome, pb::finished::Outcome::Succeeded(_) | pb::finished::Outcome::Failed(_));
    let late = live.is_none() && claims;
    if let Some(live) = live {
        let index = index.unwrap_or_default();
        match outcome {
            pb::finished::Outcome::Succeeded(succeeded) => succeed(&mut tx, &live, succeeded).await?,
            pb::finished::Outcome::Failed(_) => {
                end_job(&mut tx, &live, Cause::Failed, "failed", &message).await?;
            }
            pb::finished::Outcome::Released(released) => {
                let message = format!("member {index} gave its place back after step {}", released.step);
                events::append(&mut tx, job, Event::new("released", message, Some(fence))).await?;
                settle(&mut tx, &live).await?;
            }
            pb::finished::Outcome::Lost(_) | pb::finished::Outcome::Stopped(_) => {
                let message = format!("member {index}: {message}");
                break_up(&mut tx, &live, &message).await?;
            }
        }
    }
    tx.commit().await?;
    Ok(if late { Fenced::Stale } else { Fenced::Done(()) })
}

/// A member is gone without a word: its lease ended, or its worker registered anew.
pub async fn member_gone(pool: &PgPool, orphan: &queue::Orphan, why: &str) -> Result<(), DbError> {
    let mut tx = pool.begin().await?;
    let (job, fence) = (orphan.job, &orphan.fence);
    let live = queue::lock_live(&mut tx, job, fence).await?;
    let lost = MemberOutcome::Lost;
    if queue::end_member(&mut tx, orphan.worker, job, fence, lost, why).await? {
        if let Some(live) = live {
            break_up(&mut tx, &live, &format!("worker {}: {why}", orphan.name)).await?;
        }
        tx.commit().await?;
    }
    Ok(())
}

/// A gang's time for loading is over: its members are told to stop.
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
    if live.phase == Phase::Loading {
        break_up(&mut tx, &live, message).await?;
        tx.commit().await?;
    }
    Ok(())
}

/// Ends a job at its user's wish; its members are told to stop.
pub async fn cancel(pool: &PgPool, job: JobId) -> Result<(), CancelError> {
    let mut tx = pool.begin().await.map_err(DbError::from)?;
    let (state, fence) = queue::lock(&mut tx, job).await?.ok_or(CancelError::NotFound)?;
    let change = state.on(Cause::Cancelled)?;
    let message = "cancelled by its user";
    queue::transition(&mut tx, job, change, message).await?;
    let fence = change.attempt().map(|_| &fence);
    events::append(&mut tx, job, Event::new("cancelled", message, fence)).await?;
    tx.commit().await.map_err(DbError::from)?;
    Ok(())
}

/// The live job and the member's index, with the job's row locked; nothing when either is stale.
async fn lock_member(
    tx: &mut Tx,
    worker: WorkerId,
    job: JobId,
    fence: &Fence,
) -> Result<Option<(Live, u32)>, DbError> {
    let Some(live) = queue::lock_live(tx, job, fence).await? else { return Ok(None) };
    let index = queue::is_member(tx, worker, job, fence).await?;
    Ok(index.map(|index| (live, index)))
}

async fn succeed(tx: &mut Tx, live: &Live, succeeded: &pb::Succeeded) -> Result<(), DbError> {
    let checkpoint = succeeded.checkpoint.as_ref();
    let id = checkpoint.and_then(|c| checkpoints::belongs_to(c, live.job, &live.fence));
    let (Some(checkpoint), Some(id)) = (checkpoint, id) else {
        let message = "a member reported success without a final checkpoint of its own gang";
        return end_job(tx, live, Cause::Failed, "failed", message).await;
    };
    checkpoints::insert(tx, live.job, &id, checkpoint, true).await?;
    let result =
        pb::JobResult { checkpoint: checkpoint.name.clone(), ..succeeded.result.clone().unwrap_or_default() };
    queue::record_result(tx, live.job, &result).await?;
    // Said here too: what a member reported just before its end may come too late to be stored.
    let early =
        if result.stopped_early { ", early: evaluations no longer got better (eval.patience)" } else { "" };
    let message = format!("finished after step {}{early}", id.step());
    end_job(tx, live, Cause::Succeeded, "succeeded", &message).await
}

/// A gang lost a member: the others are to stop, and the attempt ends when the last has.
async fn break_up(tx: &mut Tx, live: &Live, message: &str) -> Result<(), DbError> {
    if matches!(live.phase, Phase::Loading | Phase::Training) {
        queue::close(tx, live.job, message).await?;
        events::append(tx, live.job, Event::new("lost", message, Some(&live.fence))).await?;
    }
    let first = if live.message.is_empty() { message } else { &live.message };
    settle(tx, &Live { message: first.to_owned(), ..live.clone() }).await
}

/// Ends an attempt whose members are all gone: back to the queue, or failed when that happened too often.
async fn settle(tx: &mut Tx, live: &Live) -> Result<(), DbError> {
    let members = queue::members(tx, live.job, &live.fence).await?;
    let outcomes: Vec<_> = members.iter().map(|member| member.outcome).collect();
    match dissolved(&outcomes) {
        None => Ok(()),
        Some(AttemptState::Released) => {
            let message = "its workers gave it back; it resumes where it was";
            end_job(tx, live, Cause::Released, "queued", message).await
        }
        Some(_) => lose(tx, live).await,
    }
}

async fn lose(tx: &mut Tx, live: &Live) -> Result<(), DbError> {
    let made_new_step = live.step > live.steps_before;
    let (failures, exhausted) = infrastructure_failures(live.infrastructure_failures, made_new_step);
    queue::record_failures(tx, live.job, failures).await?;
    let why = &live.message;
    let (kind, message) = if exhausted {
        let message = format!(
            "{failures} attempts in a row lost their workers without a new finished step: the job seems to kill its \
             workers (out of memory? try a smaller micro_tokens); the last one: {why}"
        );
        ("failed", message)
    } else {
        (
            "queued",
            format!(
                "attempt {} lost its gang ({why}); it resumes from its last checkpoint",
                live.fence.attempt
            ),
        )
    };
    end_job(tx, live, Cause::Lost { exhausted }, kind, &message).await
}

/// Moves the job and its attempt on, with an event.
async fn end_job(tx: &mut Tx, live: &Live, cause: Cause, kind: &str, message: &str) -> Result<(), DbError> {
    let running = crate::job::JobState::Running;
    let change = running.on(cause).map_err(|illegal| DbError::Data(illegal.to_string()))?;
    queue::transition(tx, live.job, change, message).await?;
    events::append(tx, live.job, Event::new(kind, message, Some(&live.fence))).await
}

fn member_outcome(outcome: &pb::finished::Outcome) -> (MemberOutcome, String) {
    use pb::finished::Outcome;
    match outcome {
        Outcome::Succeeded(_) => (MemberOutcome::Succeeded, String::new()),
        Outcome::Failed(failed) => (MemberOutcome::Failed, failed.message.clone()),
        Outcome::Lost(lost) => (MemberOutcome::Lost, lost_message(lost)),
        Outcome::Released(_) => (MemberOutcome::Released, String::new()),
        Outcome::Stopped(_) => (MemberOutcome::Stopped, "stopped".to_owned()),
    }
}

fn lost_message(lost: &pb::Lost) -> String {
    let message = if lost.message.is_empty() { "lost its gang" } else { &lost.message };
    match lost.suspects.as_slice() {
        [] => message.to_owned(),
        suspects => {
            let list: Vec<String> = suspects.iter().map(u32::to_string).collect();
            format!("{message} (could not reach member {})", list.join(", "))
        }
    }
}

/// What members disagree about, if they do, naming them.
fn disagreement(members: &[Member]) -> Option<String> {
    type Part = (&'static str, fn(&pb::Ready) -> String);
    const PARTS: [Part; 4] = [
        ("the base", |ready| ready.base_sha256.clone()),
        ("the training data", |ready| ready.train_sha256.clone()),
        ("the number of steps", |ready| ready.total_steps.to_string()),
        ("the trainable parameters", |ready| ready.trainable_parameters.to_string()),
    ];
    PARTS.iter().find_map(|(what, part)| {
        let loaded: Vec<(&str, String)> = members
            .iter()
            .filter_map(|member| Some((member.worker.as_str(), part(member.ready.as_ref()?))))
            .collect();
        let (_, first) = loaded.first()?;
        if loaded.iter().all(|(_, other)| other == first) {
            return None;
        }
        let list: Vec<String> =
            loaded.iter().map(|(worker, value)| format!("{worker} has {value}")).collect();
        Some(format!("the gang's members disagree about {what}: {}", list.join("; ")))
    })
}

fn ready_message(ready: &pb::Ready, members: usize, start_step: u64) -> String {
    let examples = ready.data.as_ref().map_or(0, |data| data.examples);
    let from = match start_step {
        0 => "from scratch".to_owned(),
        step => format!("after step {step}"),
    };
    format!(
        "{} ready; {} examples, {} steps, {} trainable parameters; training {from}",
        count(members, "member"),
        examples,
        ready.total_steps,
        ready.trainable_parameters
    )
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
