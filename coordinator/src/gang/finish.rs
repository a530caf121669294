//! A place's part ends: its holder says so, or is gone.

use lorafleet_proto::v1 as pb;
use sqlx::PgPool;

use super::{
    Fenced,
    advance::{Advance, Moment, advance_locked},
    end::{fail, succeed},
};
use crate::{
    db::{DbError, Tx},
    events::{self, Event},
    ids::{Fence, RunId, WorkerId},
    job::{MemberOutcome, Phase},
    queue::{self, Live, Orphan},
};

/// What a place's holder says at its end. It belongs to the place, whatever the generation is by now.
#[derive(Clone, Copy, Debug)]
pub struct Finish<'a> {
    /// Who says it.
    pub worker: WorkerId,
    /// Its place.
    pub run: RunId,
    /// What became of it.
    pub outcome: &'a pb::finished::Outcome,
}

/// A place's part is over, by its holder's word. Of an attempt that is no longer live this only frees the slot. Stale:
/// it held no such place, or what it claims came too late to count.
pub async fn finished(
    pool: &PgPool,
    moment: Moment<'_>,
    finish: Finish<'_>,
) -> Result<Fenced<Advance>, DbError> {
    use pb::finished::Outcome;
    let Finish { worker, run, outcome } = finish;
    let mut tx = pool.begin().await?;
    // The job first, as everywhere: its lock orders all that happens to it.
    let live = queue::lock_running(&mut tx, run.job).await?.filter(|live| live.fence.attempt == run.attempt);
    let (ending, message) = place_outcome(outcome);
    let Some(name) = queue::end_place(&mut tx, worker, run, ending, &message).await? else {
        return Ok(Fenced::Stale);
    };
    let Some(live) = live else {
        tx.commit().await?;
        let claims = matches!(outcome, Outcome::Succeeded(_) | Outcome::Failed(_));
        return Ok(if claims { Fenced::Stale } else { Fenced::Done(Advance::Changed) });
    };
    let counts = is_of_the_gang(&mut tx, &live, run).await?;
    let advance = match outcome {
        Outcome::Succeeded(succeeded) if counts => {
            let fence = written_under(&mut tx, run, succeeded).await?;
            succeed(&mut tx, &live, &fence.unwrap_or_else(|| live.fence.clone()), succeeded).await?;
            Advance::Changed
        }
        Outcome::Failed(failed) if counts => {
            fail(&mut tx, &live, failed).await?;
            Advance::Changed
        }
        _ => {
            let (kind, message) = said(outcome, &name, &message);
            events::append(&mut tx, run.job, Event::new(kind, message, Some(&live.fence))).await?;
            after_end(&mut tx, moment, &live).await?
        }
    };
    tx.commit().await?;
    Ok(Fenced::Done(advance))
}

/// A place's holder is gone without a word: its lease ended, or its worker registered anew.
pub async fn member_gone(
    pool: &PgPool,
    moment: Moment<'_>,
    orphan: &Orphan,
    why: &str,
) -> Result<Advance, DbError> {
    let run = orphan.run;
    let mut tx = pool.begin().await?;
    let live = queue::lock_running(&mut tx, run.job).await?.filter(|live| live.fence.attempt == run.attempt);
    if queue::end_place(&mut tx, orphan.worker, run, MemberOutcome::Lost, why).await?.is_none() {
        return Ok(Advance::Rests);
    }
    let mut advance = Advance::Changed;
    if let Some(live) = live {
        let message = format!("worker {}: {why}", orphan.name);
        events::append(&mut tx, run.job, Event::new("lost", message, Some(&live.fence))).await?;
        advance = after_end(&mut tx, moment, &live).await?;
    }
    tx.commit().await?;
    Ok(advance)
}

/// What follows for the gang. The place has ended, so something has changed in any case.
async fn after_end(tx: &mut Tx, moment: Moment<'_>, live: &Live) -> Result<Advance, DbError> {
    let advance = advance_locked(tx, moment, live).await?;
    Ok(if advance == Advance::Rests { Advance::Changed } else { advance })
}

/// Whether a place's word counts for the job: it is a member of the current generation, or the first one has not begun.
/// What befalls a newcomer while it loads is its own affair.
async fn is_of_the_gang(tx: &mut Tx, live: &Live, run: RunId) -> Result<bool, DbError> {
    if live.phase != Phase::Training {
        return Ok(true);
    }
    let members = queue::members(tx, live.job, &live.fence).await?;
    Ok(members.iter().any(|member| member.place == run.place.0))
}

/// The generation that a final checkpoint says it was written under, if this place was a member of it.
async fn written_under(tx: &mut Tx, run: RunId, succeeded: &pb::Succeeded) -> Result<Option<Fence>, DbError> {
    let Some(checkpoint) = &succeeded.checkpoint else { return Ok(None) };
    let Ok((_, id)) = lorafleet_store::CheckpointId::parse_resource_name(&checkpoint.name) else {
        return Ok(None);
    };
    let fence = Fence::from(id.fence());
    let was = fence.attempt == run.attempt && queue::was_member(tx, run, &fence).await?;
    Ok(was.then_some(fence))
}

fn place_outcome(outcome: &pb::finished::Outcome) -> (MemberOutcome, String) {
    use pb::finished::Outcome;
    match outcome {
        Outcome::Succeeded(_) => (MemberOutcome::Succeeded, String::new()),
        Outcome::Failed(failed) => (MemberOutcome::Failed, failed.message.clone()),
        Outcome::Lost(lost) => (MemberOutcome::Lost, lost_message(lost)),
        Outcome::Released(_) => (MemberOutcome::Released, String::new()),
        Outcome::Stopped(_) => (MemberOutcome::Stopped, "stopped".to_owned()),
    }
}

/// The event that tells of a place's end where the gang goes on.
fn said(outcome: &pb::finished::Outcome, name: &str, message: &str) -> (&'static str, String) {
    use pb::finished::Outcome;
    match outcome {
        Outcome::Released(released) => {
            ("left", format!("{name} gave its place back after step {}", released.step))
        }
        Outcome::Failed(_) => ("lost", format!("worker {name} could not join: {message}")),
        Outcome::Succeeded(_) => ("lost", format!("worker {name} reported success of a gang it is not in")),
        Outcome::Lost(_) | Outcome::Stopped(_) => ("lost", format!("worker {name}: {message}")),
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
