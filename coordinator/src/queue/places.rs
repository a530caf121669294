//! Places in attempts: who holds which, what its holder said about it, and how its part ended.

use std::collections::{HashMap, HashSet};

use lorafleet_proto::v1 as pb;
use sqlx::{PgConnection, PgPool, types::Json};
use uuid::Uuid;

use crate::{
    convert,
    db::{DbError, text},
    ids::{Fence, JobId, PlaceNo, RunId, WorkerId},
    job::{AttemptState, MemberOutcome},
    scheduler,
};

/// Longest message about a place that is kept, in bytes.
const MAX_MESSAGE: usize = 4096;

/// A place of an attempt, as its row says.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its number.
    pub place: PlaceNo,
    /// Its index in the job's current generation, if it is a member.
    pub index: Option<u32>,
    /// Its holder.
    pub worker: WorkerId,
    /// The holder's name.
    pub name: String,
    /// host:port of the holder's collective.
    pub address: String,
    /// The holder's kind.
    pub kind: String,
    /// What it loaded, once it has.
    pub ready: Option<pb::Ready>,
    /// What it said when it left the current generation's collective.
    pub parted: Option<pb::Parted>,
    /// How its part ended; `None` while it is live.
    pub outcome: Option<MemberOutcome>,
    /// How its part ended, for people.
    pub message: String,
    /// Its holder's stream was seen to end.
    pub closed: bool,
}

/// A place whose holder's lease has ended.
#[derive(Clone, Debug)]
pub struct Orphan {
    /// The former holder.
    pub worker: WorkerId,
    /// Its name.
    pub name: String,
    /// The place.
    pub run: RunId,
    /// Another process has its name now.
    pub restarted: bool,
}

/// The places of an attempt that are live or members under `fence`, by number; before the first generation all of them.
pub async fn places(tx: &mut PgConnection, job: JobId, fence: &Fence) -> Result<Vec<Place>, DbError> {
    Ok(places_of(tx, [(job, fence)]).await?.remove(&job).unwrap_or_default())
}

/// The same for many attempts, each of another job.
pub async fn places_of(
    tx: &mut PgConnection,
    attempts: impl IntoIterator<Item = (JobId, &Fence)>,
) -> Result<HashMap<JobId, Vec<Place>>, DbError> {
    let (mut job, mut attempt, mut generation) = (Vec::new(), Vec::new(), Vec::new());
    for (of, fence) in attempts {
        job.push(of.0);
        attempt.push(fence.attempt_i32());
        generation.push(fence.generation_i32());
    }
    let rows = sqlx::query!(
        r#"select p.job_id, p.place, m.index as "index?", p.worker_id, p.worker, p.address, p.kind,
                  p.ready as "ready: Json<pb::Ready>", p.parted as "parted: Json<pb::Parted>", p.outcome, p.message,
                  coalesce(l.closed, true) as "closed!"
           from unnest($1::uuid[], $2::int[], $3::int[]) w (job_id, attempt, generation)
           join places p on p.job_id = w.job_id and p.attempt = w.attempt
           left join members m on m.job_id = p.job_id and m.attempt = p.attempt and m.place = p.place
                and m.generation = w.generation
           left join worker_leases l on l.worker_id = p.worker_id
           where p.live or m.index is not null or w.generation = 0
           order by p.job_id, p.place"#,
        &job,
        &attempt,
        &generation,
    )
    .fetch_all(tx)
    .await?;
    let mut places: HashMap<JobId, Vec<Place>> = HashMap::new();
    for row in rows {
        places.entry(JobId(row.job_id)).or_default().push(Place {
            place: PlaceNo(convert::to_u32(row.place)),
            index: row.index.map(convert::to_u32),
            worker: WorkerId(row.worker_id),
            name: row.worker,
            address: row.address,
            kind: row.kind,
            ready: row.ready.map(|ready| ready.0),
            parted: row.parted.map(|parted| parted.0),
            outcome: row.outcome.as_deref().map(parse_outcome).transpose()?,
            message: row.message,
            closed: row.closed,
        });
    }
    Ok(places)
}

/// Gives a worker a new place in an attempt. The caller holds the job's lock. `None`: the worker is gone or draining.
/// An error of a unique index: the slot is taken, or it holds a place of this attempt.
pub async fn add_place(
    tx: &mut PgConnection,
    job: JobId,
    attempt: u32,
    place: scheduler::Place,
) -> Result<Option<PlaceNo>, DbError> {
    let added = sqlx::query_scalar!(
        "insert into places (job_id, attempt, place, worker_id, worker, address, kind, slot)
         select $1, $2, 1 + (select coalesce(max(place), 0) from places where job_id = $1 and attempt = $2),
                w.worker_id, w.name, w.collective_address, w.kind, $4
         from workers w where w.worker_id = $3 and w.state = 'LIVE' and not w.draining
         returning place",
        job.0,
        convert::to_i32(attempt),
        place.worker.0,
        convert::to_i32(place.slot),
    )
    .fetch_optional(tx)
    .await?;
    Ok(added.map(|place| PlaceNo(convert::to_u32(place))))
}

/// Asks a place's holder to give it back. False: it is not live, or was asked before.
pub async fn set_leaving(tx: &mut PgConnection, run: RunId, reason: &str) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "update places set leaving = $4
         where job_id = $1 and attempt = $2 and place = $3 and live and leaving is null",
        run.job.0,
        convert::to_i32(run.attempt),
        run.place.to_i32(),
        text(reason, MAX_MESSAGE),
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Holders of places have loaded base and data; what each said first stays. Returns the places that they hold. The caller
/// has the jobs' locks, and names only places of live attempts.
pub async fn set_ready(
    tx: &mut PgConnection,
    ready: &[(WorkerId, RunId, &pb::Ready)],
) -> Result<HashSet<RunId>, DbError> {
    let runs = Runs::of(ready.iter().map(|(worker, run, _)| (*worker, *run)));
    let said: Vec<Json<&pb::Ready>> = ready.iter().map(|(_, _, ready)| Json(*ready)).collect();
    let rows = sqlx::query!(
        "update places p set ready = coalesce(p.ready, w.ready)
         from unnest($1::uuid[], $2::int[], $3::int[], $4::uuid[], $5::jsonb[]) w (job_id, attempt, place, worker_id, ready)
         where p.job_id = w.job_id and p.attempt = w.attempt and p.place = w.place and p.worker_id = w.worker_id and p.live
         returning p.job_id, p.attempt, p.place",
        &runs.job,
        &runs.attempt,
        &runs.place,
        &runs.worker,
        &said as _,
    )
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(|row| run_of(row.job_id, row.attempt, row.place)).collect())
}

/// A member has left the collective of the generation under `fence`; what it says last stays. False: that is not the
/// job's fence, or it is no live member under it.
pub async fn set_parted(
    tx: &mut PgConnection,
    worker: WorkerId,
    job: JobId,
    fence: &Fence,
    parted: &pb::Parted,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "update places p set parted = $7
         from jobs j, members m
         where p.job_id = $1 and p.attempt = $2 and p.place = $5 and p.worker_id = $6 and p.live
           and m.job_id = $1 and m.attempt = $2 and m.generation = $3 and m.place = $5
           and j.job_id = $1 and j.state = 'RUNNING' and j.attempt = $2 and j.generation = $3 and j.generation_id = $4",
        job.0,
        fence.attempt_i32(),
        fence.generation_i32(),
        fence.generation_id,
        PlaceNo(parted.place).to_i32(),
        worker.0,
        Json(parted) as _,
    )
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The end of a worker's part in an attempt.
#[derive(Clone, Debug)]
pub struct PlaceEnd {
    /// The holder.
    pub worker: WorkerId,
    /// The place.
    pub run: RunId,
    /// How it ended.
    pub outcome: MemberOutcome,
    /// The same for people.
    pub message: String,
}

/// Ends a place, which frees its slot; the attempt need not be live. Returns its holder's name, or nothing when this
/// worker holds no such place.
pub async fn end_place(
    tx: &mut PgConnection,
    worker: WorkerId,
    run: RunId,
    outcome: MemberOutcome,
    message: &str,
) -> Result<Option<String>, DbError> {
    let end = PlaceEnd { worker, run, outcome, message: message.to_owned() };
    Ok(end_places(tx, &[end]).await?.remove(&run))
}

/// The same for many: the names of those that held their places.
pub async fn end_places(tx: &mut PgConnection, ends: &[PlaceEnd]) -> Result<HashMap<RunId, String>, DbError> {
    let runs = Runs::of(ends.iter().map(|end| (end.worker, end.run)));
    let outcomes: Vec<String> = ends.iter().map(|end| end.outcome.as_str().to_owned()).collect();
    let messages: Vec<String> = ends.iter().map(|end| text(&end.message, MAX_MESSAGE)).collect();
    let rows = sqlx::query!(
        "update places p set live = false, outcome = w.outcome, message = w.message, end_time = now()
         from unnest($1::uuid[], $2::int[], $3::int[], $4::uuid[], $5::text[], $6::text[])
           w (job_id, attempt, place, worker_id, outcome, message)
         where p.job_id = w.job_id and p.attempt = w.attempt and p.place = w.place and p.worker_id = w.worker_id and p.live
         returning p.job_id, p.attempt, p.place, p.worker",
        &runs.job,
        &runs.attempt,
        &runs.place,
        &runs.worker,
        &outcomes,
        &messages,
    )
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(|row| (run_of(row.job_id, row.attempt, row.place), row.worker)).collect())
}

/// Whether a worker holds a live place that was a member under a fence of the attempt; before the first generation any
/// of its places. The caller holds the job's lock.
pub async fn is_member(
    tx: &mut PgConnection,
    worker: WorkerId,
    job: JobId,
    fence: &Fence,
) -> Result<bool, DbError> {
    let found = sqlx::query_scalar!(
        r#"select exists (
             select 1 from places p where p.job_id = $1 and p.attempt = $2 and p.worker_id = $5 and p.live
               and (($3 = 0 and $4 = '') or exists (
                 select 1 from members m
                 join generations g on g.job_id = m.job_id and g.attempt = m.attempt and g.generation = m.generation
                 where m.job_id = $1 and m.attempt = $2 and m.generation = $3 and m.place = p.place
                   and g.generation_id = $4))
           ) as "found!""#,
        job.0,
        fence.attempt_i32(),
        fence.generation_i32(),
        fence.generation_id,
        worker.0,
    )
    .fetch_one(tx)
    .await?;
    Ok(found)
}

/// Where a worker's newest place in an attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whereabouts {
    /// The place.
    pub place: PlaceNo,
    /// The attempt's state.
    pub attempt: AttemptState,
    /// How its part ended; `None` while it is live.
    pub outcome: Option<MemberOutcome>,
}

/// Where a worker stands in an attempt: at `place`, or, for 0, at its newest place there. `None`: it never had it.
pub async fn whereabouts(
    pool: &PgPool,
    worker: WorkerId,
    run: RunId,
) -> Result<Option<Whereabouts>, DbError> {
    let row = sqlx::query!(
        "select p.place, p.outcome, a.state
         from places p join attempts a on a.job_id = p.job_id and a.attempt = p.attempt
         where p.job_id = $1 and p.attempt = $2 and ($3 = 0 or p.place = $3) and p.worker_id = $4
         order by p.place desc limit 1",
        run.job.0,
        convert::to_i32(run.attempt),
        run.place.to_i32(),
        worker.0,
    )
    .fetch_optional(pool)
    .await?;
    row.map(|row| {
        Ok(Whereabouts {
            place: PlaceNo(convert::to_u32(row.place)),
            attempt: parse_state(&row.state)?,
            outcome: row.outcome.as_deref().map(parse_outcome).transpose()?,
        })
    })
    .transpose()
}

/// Live places whose holder's lease has ended, or whose holder is forgotten.
pub async fn orphans(pool: &PgPool) -> Result<Vec<Orphan>, DbError> {
    let rows = sqlx::query!(
        r#"select p.worker_id, p.worker, p.job_id, p.attempt, p.place,
                exists (select 1 from workers n where n.name = p.worker and n.state = 'LIVE') as "restarted!"
         from places p
         where p.live and not exists (select 1 from workers w where w.worker_id = p.worker_id and w.state = 'LIVE')"#,
    )
    .fetch_all(pool)
    .await?;
    let orphan =
        |worker: Uuid, name, run, restarted| Orphan { worker: WorkerId(worker), name, run, restarted };
    let run = |job: Uuid, attempt, place| RunId {
        job: JobId(job),
        attempt: convert::to_u32(attempt),
        place: PlaceNo(convert::to_u32(place)),
    };
    let orphans = rows
        .into_iter()
        .map(|row| orphan(row.worker_id, row.worker, run(row.job_id, row.attempt, row.place), row.restarted));
    Ok(orphans.collect())
}

fn parse_outcome(outcome: &str) -> Result<MemberOutcome, DbError> {
    MemberOutcome::parse(outcome).ok_or_else(|| DbError::Data(format!("outcome {outcome}")))
}

pub(super) fn parse_state(state: &str) -> Result<AttemptState, DbError> {
    AttemptState::parse(state).ok_or_else(|| DbError::Data(format!("attempt state {state}")))
}

/// Places as the arrays that a statement takes.
#[derive(Default)]
pub(super) struct Runs {
    pub(super) job: Vec<Uuid>,
    pub(super) attempt: Vec<i32>,
    pub(super) place: Vec<i32>,
    pub(super) worker: Vec<Uuid>,
}

impl Runs {
    pub(super) fn of(runs: impl Iterator<Item = (WorkerId, RunId)>) -> Self {
        let mut columns = Self::default();
        for (worker, run) in runs {
            columns.job.push(run.job.0);
            columns.attempt.push(convert::to_i32(run.attempt));
            columns.place.push(run.place.to_i32());
            columns.worker.push(worker.0);
        }
        columns
    }
}

pub(super) fn run_of(job: Uuid, attempt: i32, place: i32) -> RunId {
    RunId { job: JobId(job), attempt: convert::to_u32(attempt), place: PlaceNo(convert::to_u32(place)) }
}
