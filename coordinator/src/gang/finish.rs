//! A place's part ends: its holder says so, or is gone.

use std::collections::HashSet;

use lorafleet_proto::v1 as pb;
use sqlx::PgPool;

use super::{
    Fenced,
    advance::{Advance, Moment, advance_locked},
    end::{end_job, fail, succeed_all, succeed_evaluation, succeeding},
};
use crate::{
    checkpoints,
    db::{DbError, Tx},
    events::{self, Event},
    ids::{Fence, RunId, WorkerId},
    job::{Cause, MemberOutcome, Phase},
    queue::{self, Live, Look, Orphan, PlaceEnd, Success},
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
    let mut answers = finished_all(pool, moment, &[finish]).await?;
    answers.pop().ok_or_else(|| DbError::Data("no answer to the end of a place".to_owned()))
}

/// The same for many, with an answer to each; what says more of one job than its end one after another.
pub async fn finished_all(
    pool: &PgPool,
    moment: Moment<'_>,
    finishes: &[Finish<'_>],
) -> Result<Vec<Fenced<Advance>>, DbError> {
    // Most jobs end well, by a member's word under the fence of the moment: one statement for all of these.
    let told: Vec<Success<'_>> = finishes.iter().filter_map(told_success).collect();
    let ended = succeed_all(pool, Look::Here, &told).await?;
    let answer = |finish: &Finish<'_>| ended.contains(&finish.run).then_some(Fenced::Done(Advance::Changed));
    let mut answers: Vec<Option<Fenced<Advance>>> = finishes.iter().map(answer).collect();
    let mut left: Vec<usize> = (0..finishes.len()).filter(|i| answers[*i].is_none()).collect();
    while !left.is_empty() {
        let mut jobs = HashSet::new();
        let (now, later): (Vec<usize>, Vec<usize>) =
            left.into_iter().partition(|i| jobs.insert(finishes[*i].run.job));
        let round: Vec<Finish<'_>> = now.iter().map(|i| finishes[*i]).collect();
        for (i, answer) in now.into_iter().zip(finish_round(pool, moment, &round).await?) {
            answers[i] = Some(answer);
        }
        left = later;
    }
    Ok(answers.into_iter().flatten().collect())
}

/// Ends places of different jobs, in one transaction.
async fn finish_round(
    pool: &PgPool,
    moment: Moment<'_>,
    round: &[Finish<'_>],
) -> Result<Vec<Fenced<Advance>>, DbError> {
    let mut tx = pool.begin().await?;
    // The jobs first, as everywhere: a job's lock orders all that happens to it.
    let lives = queue::lock_all(&mut tx, round.iter().map(|finish| finish.run.job)).await?;
    let live = |run: RunId| lives.get(&run.job).filter(|live| live.fence.attempt == run.attempt);
    let ends: Vec<PlaceEnd> = round.iter().map(place_end).collect();
    let names = queue::end_places(&mut tx, &ends).await?;
    let asked = round.iter().filter_map(|finish| Some((finish, live(finish.run)?)));
    let asked: Vec<(RunId, Fence)> = asked.flat_map(|(finish, live)| fences_of(finish, live)).collect();
    let members = queue::members_under(&mut tx, &asked).await?;
    let (mut answers, mut successes) = (Vec::with_capacity(round.len()), Vec::new());
    for (finish, end) in round.iter().zip(&ends) {
        answers.push(match (names.get(&finish.run), live(finish.run)) {
            (None, _) => Fenced::Stale,
            (Some(_), None) => too_late(finish.outcome),
            (Some(name), Some(live)) => match success(finish, live, &members) {
                Some(success) => {
                    successes.push(success);
                    Fenced::Done(Advance::Changed)
                }
                None => Fenced::Done(finish_one(&mut tx, moment, live, finish, &members, name, end).await?),
            },
        });
    }
    if succeed_all(&mut *tx, Look::Done, &successes).await?.len() != successes.len() {
        return Err(DbError::Data("a job that was locked, and is not as it had been read".to_owned()));
    }
    tx.commit().await?;
    Ok(answers)
}

/// Of an attempt that is no longer live: its slot is free.
fn too_late(outcome: &pb::finished::Outcome) -> Fenced<Advance> {
    use pb::finished::Outcome;
    let claims = matches!(outcome, Outcome::Succeeded(_) | Outcome::Failed(_));
    if claims { Fenced::Stale } else { Fenced::Done(Advance::Changed) }
}

/// What the job's end well is made of, where a member's word says so and counts.
fn success<'a>(
    finish: &Finish<'a>,
    live: &'a Live,
    members: &HashSet<(RunId, Fence)>,
) -> Option<Success<'a>> {
    let pb::finished::Outcome::Succeeded(succeeded) = finish.outcome else { return None };
    if !is_of_the_gang(finish.run, live, members) {
        return None;
    }
    let checkpoint = succeeded.checkpoint.as_ref()?;
    let written_under = written_under(finish).filter(|fence| members.contains(&(finish.run, fence.clone())));
    let id = checkpoints::belongs_to(checkpoint, live.job, written_under.as_ref().unwrap_or(&live.fence))?;
    Some(succeeding((finish.worker, finish.run), live.fence.clone(), id, checkpoint, succeeded))
}

/// The same by the word alone, which names the fence that it was written under.
fn told_success<'a>(finish: &Finish<'a>) -> Option<Success<'a>> {
    let pb::finished::Outcome::Succeeded(succeeded) = finish.outcome else { return None };
    let (checkpoint, fence) = (succeeded.checkpoint.as_ref()?, written_under(finish)?);
    let id = checkpoints::belongs_to(checkpoint, finish.run.job, &fence)?;
    Some(succeeding((finish.worker, finish.run), fence, id, checkpoint, succeeded))
}

/// What follows from the end of a place that does not end its job well.
async fn finish_one(
    tx: &mut Tx,
    moment: Moment<'_>,
    live: &Live,
    finish: &Finish<'_>,
    members: &HashSet<(RunId, Fence)>,
    name: &str,
    end: &PlaceEnd,
) -> Result<Advance, DbError> {
    use pb::finished::Outcome;
    let counts = is_of_the_gang(finish.run, live, members);
    match finish.outcome {
        Outcome::Succeeded(succeeded) if counts => {
            let evaluated =
                succeeded.checkpoint.is_none() && queue::action(tx, live.job).await? == pb::Action::Evaluate;
            if evaluated {
                succeed_evaluation(tx, live, succeeded).await?;
            } else {
                let message = "a member reported success without a final checkpoint of its own gang";
                end_job(tx, live, Cause::Failed, "failed", message).await?;
            }
            Ok(Advance::Changed)
        }
        Outcome::Failed(failed) if counts => {
            fail(tx, live, failed).await?;
            Ok(Advance::Changed)
        }
        outcome => {
            let (kind, message) = said(outcome, name, &end.message);
            events::append(tx, live.job, Event::new(kind, message, Some(&live.fence))).await?;
            after_end(tx, moment, live).await
        }
    }
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
fn is_of_the_gang(run: RunId, live: &Live, members: &HashSet<(RunId, Fence)>) -> bool {
    live.phase != Phase::Training || members.contains(&(run, live.fence.clone()))
}

/// The fences of which it matters whether a place was a member under them.
fn fences_of(finish: &Finish<'_>, live: &Live) -> Vec<(RunId, Fence)> {
    let fences = [Some(live.fence.clone()), written_under(finish)];
    fences.into_iter().flatten().map(|fence| (finish.run, fence)).collect()
}

/// The generation of the attempt that a final checkpoint says it was written under.
fn written_under(finish: &Finish<'_>) -> Option<Fence> {
    let pb::finished::Outcome::Succeeded(succeeded) = finish.outcome else { return None };
    let name = &succeeded.checkpoint.as_ref()?.name;
    let (_, id) = lorafleet_store::CheckpointId::parse_resource_name(name).ok()?;
    Some(Fence::from(id.fence())).filter(|fence| fence.attempt == finish.run.attempt)
}

fn place_end(finish: &Finish<'_>) -> PlaceEnd {
    let (outcome, message) = place_outcome(finish.outcome);
    PlaceEnd { worker: finish.worker, run: finish.run, outcome, message }
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
