//! Members have loaded: what many say at once is stored in one transaction, and the gangs that were complete with it
//! begin.

use std::collections::{HashMap, HashSet};

use lorafleet_proto::v1 as pb;
use sqlx::PgPool;

use super::{
    Fenced,
    advance::{Advance, Moment, Opened, advance_locked, kinds, member, view},
    agree, why,
};
use crate::{
    db::DbError,
    ids::{Fence, JobId, RunId, WorkerId},
    job::Phase,
    membership::{self, Decision},
    queue::{self, Beginning, Begun, Live, Place, Single},
};

/// A place's holder has loaded base and data.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Who says it.
    pub worker: WorkerId,
    /// Its place.
    pub run: RunId,
    /// What it loaded.
    pub ready: pb::Ready,
}

/// Stores what holders of places loaded, and carries their attempts on; an answer to each. Stale: it holds no such place
/// of the job's live attempt.
pub async fn ready(
    pool: &PgPool,
    moment: Moment<'_>,
    said: &[Loaded],
) -> Result<Vec<Fenced<Advance>>, DbError> {
    let mut opened = alone(pool, said).await?;
    let rest: Vec<Loaded> = said.iter().filter(|loaded| !opened.contains_key(&loaded.run)).cloned().collect();
    let mut others = match rest.is_empty() {
        true => Vec::new(),
        false => together(pool, moment, &rest).await?,
    }
    .into_iter();
    let answer = |loaded: &Loaded| match opened.remove(&loaded.run) {
        Some(opened) => Some(Fenced::Done(Advance::Opened(opened))),
        None => others.next(),
    };
    Ok(said.iter().filter_map(answer).collect())
}

/// Begins the gangs of one among them, which is most of many small jobs: by one statement.
async fn alone(pool: &PgPool, said: &[Loaded]) -> Result<HashMap<RunId, Opened>, DbError> {
    let mut seen = HashSet::new();
    let firsts = said.iter().filter(|loaded| loaded.run.attempt == 1 && seen.insert(loaded.run));
    let singles: Vec<Single<'_>> = firsts
        .map(|Loaded { worker, run, ready }| Single {
            worker: *worker,
            run: *run,
            ready,
            fence: Fence::loading(1).next(0),
            message: why::ready(ready, 1, 0),
        })
        .collect();
    if singles.is_empty() {
        return Ok(HashMap::new());
    }
    let mut begun = queue::begin_alone(pool, &singles).await?;
    let opened = singles.into_iter().filter_map(|single| {
        let Begun { name, address } = begun.remove(&single.run)?;
        let member = pb::Member { index: 0, worker: name, address, place: single.run.place.0 };
        Some((single.run, Opened { fence: single.fence, members: vec![(single.worker, member)] }))
    });
    Ok(opened.collect())
}

/// Carries the others on, in one transaction.
async fn together(
    pool: &PgPool,
    moment: Moment<'_>,
    said: &[Loaded],
) -> Result<Vec<Fenced<Advance>>, DbError> {
    let mut tx = pool.begin().await?;
    let lives = queue::lock_all(&mut tx, said.iter().map(|loaded| loaded.run.job)).await?;
    let is_live = |run: &RunId| lives.get(&run.job).is_some_and(|live| live.fence.attempt == run.attempt);
    let of_live: Vec<_> = said
        .iter()
        .filter(|loaded| is_live(&loaded.run))
        .map(|loaded| (loaded.worker, loaded.run, &loaded.ready))
        .collect();
    let held = queue::set_ready(&mut tx, &of_live).await?;
    let concerned: HashMap<JobId, &Live> =
        held.iter().filter_map(|run| Some((run.job, lives.get(&run.job)?))).collect();
    let places = queue::places_of(&mut tx, concerned.values().map(|live| (live.job, &live.fence))).await?;
    let (mut advances, mut beginnings) = (HashMap::new(), Vec::new());
    for (job, live) in concerned {
        let places = places.get(&job).map_or(&[][..], Vec::as_slice);
        let advance = match beginning(live, places, moment) {
            Some((beginning, opened)) => {
                beginnings.push(beginning);
                Advance::Opened(opened)
            }
            None => advance_locked(&mut tx, moment, live).await?,
        };
        advances.insert(job, advance);
    }
    queue::begin_all(&mut tx, &beginnings).await?;
    tx.commit().await?;
    // What came of a job is told once.
    let answer = |loaded: &Loaded| match held.contains(&loaded.run) {
        true => Fenced::Done(advances.remove(&loaded.run.job).unwrap_or(Advance::Rests)),
        false => Fenced::Stale,
    };
    Ok(said.iter().map(answer).collect())
}

/// How a gang begins of which all are there, at its first attempt: nothing is resumed or adopted, and nobody is left
/// behind. `None`: it is to be looked at more closely.
fn beginning<'a>(live: &'a Live, places: &'a [Place], moment: Moment<'_>) -> Option<(Beginning<'a>, Opened)> {
    if live.phase != Phase::Loading || live.fence.attempt != 1 || live.fence.generation != 0 {
        return None;
    }
    let Decision::Open { members, removed } = membership::decide(&view(live, places, moment.hub)) else {
        return None;
    };
    let chosen: Vec<&Place> =
        members.iter().filter_map(|place| places.iter().find(|p| p.place == *place)).collect();
    if !removed.is_empty() || agree::disagreement(&chosen).is_some() {
        return None;
    }
    let ready = chosen.first()?.ready.as_ref()?;
    let fence = live.fence.next(0);
    let beginning = Beginning {
        live,
        fence: fence.clone(),
        kinds: kinds(&chosen),
        ready,
        message: why::ready(ready, chosen.len(), 0),
        members,
    };
    Some((beginning, Opened { fence, members: (0..).zip(&chosen).map(member).collect() }))
}
