//! Carries an attempt on: looks at its places, lets [`membership::decide`] say what follows, and writes it down in one
//! transaction that compares the fence.

use std::time::Duration;

use lorafleet_proto::v1 as pb;
use sqlx::PgPool;

use super::{
    agree,
    end::{close, dissolve, end_job},
    why,
};
use crate::{
    db::{DbError, Tx},
    events::{self, Event},
    hub::Hub,
    ids::{Fence, JobId, PlaceNo, RunId, WorkerId},
    job::{Cause, MemberOutcome, Phase},
    membership::{self, Decision, Evidence, Removal, Seat, Standing, Stream, Suspicion, View, Why},
    queue::{self, Live, NewGeneration, Place},
};

/// What came of looking at an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Advance {
    /// Nothing changed, and nothing will without a cause.
    Rests,
    /// Nothing changed yet: look again after this time.
    Again(Duration),
    /// All are ready to begin, but the store may hold manifests without a row: look for them first.
    Adopt,
    /// A generation was opened.
    Opened(Opened),
    /// Places ended, or the attempt did.
    Changed,
}

/// A generation that was opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Opened {
    /// Its fence.
    pub fence: Fence,
    /// Its members by index.
    pub members: Vec<(WorkerId, pb::Member)>,
}

/// What this process knows beside the rows.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// Whose streams are open, and since when gangs wait.
    pub hub: &'a Hub,
    /// Manifests without a row have been looked for.
    pub adopted: bool,
}

impl<'a> Moment<'a> {
    /// What this process knows.
    pub fn of(hub: &'a Hub) -> Self {
        Self { hub, adopted: false }
    }
}

/// Carries a job's attempt on as far as it can go now.
pub async fn advance(pool: &PgPool, moment: Moment<'_>, job: JobId) -> Result<Advance, DbError> {
    let mut tx = pool.begin().await?;
    let Some(live) = queue::lock_running(&mut tx, job).await? else { return Ok(Advance::Rests) };
    let advance = advance_locked(&mut tx, moment, &live).await?;
    if matches!(advance, Advance::Opened(_) | Advance::Changed) {
        tx.commit().await?;
    }
    Ok(advance)
}

/// The same within the caller's transaction, which holds the job's lock and must be committed.
pub(super) async fn advance_locked(tx: &mut Tx, moment: Moment<'_>, live: &Live) -> Result<Advance, DbError> {
    let mut places = queue::places(tx, live.job, &live.fence).await?;
    let refused = refuse_strangers(tx, live, &mut places).await?;
    let view = view(live, &places, moment.hub);
    match membership::decide(&view) {
        Decision::Wait { again, .. } => {
            let waits = again.map_or(Advance::Rests, Advance::Again);
            // What was refused is to be stored even so; whoever is told to wait looks again by itself.
            Ok(if refused { Advance::Changed } else { waits })
        }
        Decision::Open { .. }
            if live.phase == Phase::Loading && live.fence.attempt > 1 && !moment.adopted =>
        {
            Ok(if refused { Advance::Changed } else { Advance::Adopt })
        }
        Decision::Open { members, removed } => open(tx, live, &places, &members, &removed).await,
        Decision::Close => {
            close(tx, live, &why::too_few(live, &places)).await?;
            Ok(Advance::Changed)
        }
        Decision::Dissolve { released } => {
            dissolve(tx, live, &places, released).await?;
            Ok(Advance::Changed)
        }
    }
}

/// The attempt as the rule sees it.
pub(super) fn view(live: &Live, places: &[Place], hub: &Hub) -> View {
    let parted = || places.iter().filter_map(|place| place.parted.as_ref());
    let waited = if parted().next().is_some() { hub.waited(live.job, &live.fence) } else { Duration::ZERO };
    View {
        min: live.min as usize,
        phase: live.phase,
        seats: places.iter().map(|place| seat(place, hub)).collect(),
        waited,
        progressed: parted().any(|parted| parted.step > live.start_step),
        overdue: false,
    }
}

fn seat(place: &Place, hub: &Hub) -> Seat {
    let standing = match (&place.outcome, &place.parted, &place.ready) {
        (Some(outcome), ..) => Standing::Ended(*outcome),
        (None, Some(parted), _) if place.index.is_some() => Standing::Parted(suspicions(place, parted)),
        (None, _, Some(_)) => Standing::Ready,
        (None, _, None) if place.index.is_some() => Standing::Ready,
        (None, _, None) => Standing::Loading,
    };
    let stream = if hub.is_connected(place.worker) {
        Stream::Open
    } else if place.closed {
        Stream::Closed
    } else {
        Stream::Unknown
    };
    let step = place.parted.as_ref().map_or(0, |parted| parted.step);
    Seat { place: place.place, index: place.index, standing, stream, step }
}

/// What a member says against others; what it says about itself says nothing.
fn suspicions(place: &Place, parted: &pb::Parted) -> Vec<Suspicion> {
    let evidence = |suspicion: &pb::Suspicion| match suspicion.evidence() {
        pb::Evidence::Gone => Some(Evidence::Gone),
        pb::Evidence::Silent => Some(Evidence::Silent),
        pb::Evidence::Stuck => Some(Evidence::Stuck),
        pb::Evidence::Unreachable => Some(Evidence::Unreachable),
        pb::Evidence::Unspecified => None,
    };
    let about_others = parted.suspicions.iter().filter(|suspicion| Some(suspicion.index) != place.index);
    about_others
        .filter_map(|suspicion| Some(Suspicion { index: suspicion.index, evidence: evidence(suspicion)? }))
        .collect()
}

/// Ends the places of newcomers that loaded something else than the gang. True when there were any.
async fn refuse_strangers(tx: &mut Tx, live: &Live, places: &mut [Place]) -> Result<bool, DbError> {
    if live.phase != Phase::Training {
        return Ok(false);
    }
    let Some(reference) = places.iter().find(|place| place.index.is_some() && place.ready.is_some()).cloned()
    else {
        return Ok(false);
    };
    let mut refused = false;
    for place in places.iter_mut().filter(|place| place.index.is_none() && place.outcome.is_none()) {
        let Some(differs) = agree::differs(&reference, place) else { continue };
        end_place(tx, live, place, MemberOutcome::Expelled, &differs).await?;
        let message = format!("{} does not join: {differs}", place.name);
        events::append(tx, live.job, Event::new("expelled", message, Some(&live.fence))).await?;
        refused = true;
    }
    Ok(refused)
}

async fn end_place(
    tx: &mut Tx,
    live: &Live,
    place: &mut Place,
    outcome: MemberOutcome,
    message: &str,
) -> Result<(), DbError> {
    let run = RunId { job: live.job, attempt: live.fence.attempt, place: place.place };
    queue::end_place(tx, place.worker, run, outcome, message).await?;
    place.outcome = Some(outcome);
    message.clone_into(&mut place.message);
    Ok(())
}

/// Opens the next generation, and ends the places of those that it goes on without.
async fn open(
    tx: &mut Tx,
    live: &Live,
    places: &[Place],
    members: &[PlaceNo],
    removed: &[Removal],
) -> Result<Advance, DbError> {
    let chosen: Vec<&Place> =
        members.iter().filter_map(|place| places.iter().find(|p| p.place == *place)).collect();
    let is_first = live.phase == Phase::Loading;
    if is_first && let Some(disagreement) = agree::disagreement(&chosen) {
        end_job(tx, live, Cause::Failed, "failed", &disagreement).await?;
        return Ok(Advance::Changed);
    }
    let start_step = if is_first {
        crate::checkpoints::newest_step(tx, live.job).await?
    } else {
        let steps = chosen.iter().filter_map(|place| place.parted.as_ref());
        steps.map(|parted| parted.step).max().unwrap_or(live.start_step)
    };
    let kinds = kinds(&chosen);
    let fence = live.fence.next(0);
    let new = NewGeneration { fence: &fence, members, start_step, kinds: &kinds };
    if !queue::open_generation(tx, live, &new).await? {
        return Err(DbError::Data(format!("a fence of job {} that changed under its lock", live.job)));
    }
    for removal in removed {
        remove(tx, live, &fence, places, removal).await?;
    }
    if is_first {
        begin(tx, live, &fence, &chosen, start_step).await?;
    } else {
        for joined in chosen.iter().filter(|place| place.index.is_none()) {
            let message = format!("{} joined after step {start_step}", joined.name);
            events::append(tx, live.job, Event::new("joined", message, Some(&fence))).await?;
        }
        let message = why::generation(&fence, places, &chosen, removed);
        events::append(tx, live.job, Event::new("generation", message, Some(&fence))).await?;
    }
    say_kinds(tx, live, &fence, &kinds).await?;
    Ok(Advance::Opened(Opened { fence, members: (0..).zip(&chosen).map(member).collect() }))
}

/// A member as it is told, with its worker.
pub(super) fn member((index, place): (u32, &&Place)) -> (WorkerId, pb::Member) {
    let (worker, address) = (place.name.clone(), place.address.clone());
    (place.worker, pb::Member { index, worker, address, place: place.place.0 })
}

/// The job knows now how many steps it has, and what one costs.
async fn begin(
    tx: &mut Tx,
    live: &Live,
    fence: &Fence,
    members: &[&Place],
    start_step: u64,
) -> Result<(), DbError> {
    let Some(ready) = members.first().and_then(|member| member.ready.as_ref()) else { return Ok(()) };
    queue::set_plan(tx, live.job, ready).await?;
    let message = why::ready(ready, members.len(), start_step);
    events::append(tx, live.job, Event::new("ready", message, Some(fence))).await
}

/// Ends the place of one that the gang goes on without.
async fn remove(
    tx: &mut Tx,
    live: &Live,
    fence: &Fence,
    places: &[Place],
    removal: &Removal,
) -> Result<(), DbError> {
    let Some(place) = places.iter().find(|place| place.place == removal.place) else { return Ok(()) };
    let (outcome, kind) = match &removal.why {
        // Its process is no more; another one of its name may come back at once.
        Why::Dead { evidence: Evidence::Gone | Evidence::Unreachable, .. } => (MemberOutcome::Lost, "lost"),
        Why::Late => (MemberOutcome::Lost, "lost"),
        // It was frozen or cut off from the coordinator, and may come back as new when that is over.
        Why::Dead { evidence: Evidence::Silent, .. } | Why::Quiet => (MemberOutcome::Lost, "expelled"),
        // It would do the same again at once.
        Why::Dead { evidence: Evidence::Stuck, .. } | Why::Cut { .. } => {
            (MemberOutcome::Expelled, "expelled")
        }
    };
    let message = why::removal(places, &removal.why);
    end_place(tx, live, &mut place.clone(), outcome, &message).await?;
    let message = format!("{} {message}", place.name);
    events::append(tx, live.job, Event::new(kind, message, Some(fence))).await
}

/// The kinds of a gang's workers, sorted.
pub(super) fn kinds(members: &[&Place]) -> String {
    let kinds: std::collections::BTreeSet<&str> = members.iter().map(|place| place.kind.as_str()).collect();
    kinds.into_iter().collect::<Vec<_>>().join(", ")
}

async fn say_kinds(tx: &mut Tx, live: &Live, fence: &Fence, kinds: &str) -> Result<(), DbError> {
    if live.kinds.is_empty() || live.kinds == kinds {
        return Ok(());
    }
    let message = format!(
        "the workers are of another kind ({kinds}) than before ({}): the adapter's last bits may differ",
        live.kinds
    );
    events::append(tx, live.job, Event::new("kind-changed", message, Some(fence))).await
}
