//! Goes on with a gang that is ahead of its rows, after a failover forgot the last commits.

mod judge;

use std::collections::BTreeSet;

use lorafleet_proto::v1 as pb;
use sqlx::{PgPool, types::Json};

use self::judge::{Known, KnownPlace, Verdict, judge};
use crate::{
    convert,
    db::{DbError, Tx},
    events::{self, Event},
    ids::{Fence, JobId, PlaceNo, WorkerId},
    job::{Cause, JobState},
    queue::{self, NewGeneration},
};

/// A place that a worker says it holds, with the generation that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The worker.
    pub worker: WorkerId,
    /// The generation that it is in; generation 0 while it loads.
    pub fence: Fence,
    /// Its place in the attempt.
    pub place: PlaceNo,
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The rows know it.
    Known,
    /// The rows know it now.
    Reclaimed,
    /// It is stale: the worker must stop.
    Stale,
}

/// Judges claims on places of one job that the rows do not know as they are claimed, and makes the rows follow those
/// that are ahead: attempts and places are made again, and a generation is opened above the rows' and the claimed
/// ones. One answer a claim, in order.
pub async fn reclaim(pool: &PgPool, job: JobId, claims: &[Claim]) -> Result<Vec<Answer>, DbError> {
    let mut tx = pool.begin().await?;
    let Some((mut state, mut row)) = queue::lock(&mut tx, job).await? else {
        return Ok(vec![Answer::Stale; claims.len()]);
    };
    // Those that have come furthest first: they decide which attempt is the live one.
    let mut order: Vec<usize> = (0..claims.len()).collect();
    order.sort_by_key(|i| {
        let fence = &claims[*i].fence;
        (std::cmp::Reverse((fence.attempt, fence.generation)), claims[*i].place)
    });
    let mut answers = vec![Answer::Known; claims.len()];
    let mut taken: Vec<&Claim> = Vec::new();
    let mut above: Option<u32> = None;
    for i in order {
        let claim = &claims[i];
        let place = known_place(&mut tx, job, claim, &row).await?;
        let verdict = judge(&claim.fence, &Known { state, fence: row.clone(), place });
        match verdict {
            Verdict::Known => continue,
            Verdict::Stale => {
                answers[i] = Answer::Stale;
                continue;
            }
            Verdict::Attempt => {
                adopt_attempt(&mut tx, job, state, &row, &claim.fence).await?;
                (state, row) = (JobState::Running, Fence::loading(claim.fence.attempt));
                above = Some(claim.fence.generation);
            }
            Verdict::Generation => above = above.max(Some(claim.fence.generation)),
            Verdict::Place => {}
        }
        if !hold(&mut tx, job, claim).await? {
            answers[i] = Answer::Stale;
            continue;
        }
        answers[i] = Answer::Reclaimed;
        taken.push(claim);
    }
    if !taken.is_empty() {
        go_on(&mut tx, job, &row, above, &taken).await?;
        tx.commit().await?;
    }
    Ok(answers)
}

async fn known_place(tx: &mut Tx, job: JobId, claim: &Claim, row: &Fence) -> Result<KnownPlace, DbError> {
    if claim.fence.attempt != row.attempt {
        return Ok(KnownPlace::Unknown);
    }
    let place = sqlx::query!(
        r#"select p.worker_id, p.live, p.ready is not null as "ready!",
                  exists (select 1 from workers me where me.worker_id = $4 and me.name = p.worker)
                  and not exists (select 1 from workers w where w.worker_id = p.worker_id and w.state = 'LIVE')
                    as "predecessor!"
           from places p where p.job_id = $1 and p.attempt = $2 and p.place = $3"#,
        job.0,
        claim.fence.attempt_i32(),
        claim.place.to_i32(),
        claim.worker.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    Ok(match place {
        None => KnownPlace::Unknown,
        Some(place) if !place.live => KnownPlace::Ended,
        Some(place) if place.worker_id == claim.worker.0 => KnownPlace::Mine { ready: place.ready },
        Some(place) => KnownPlace::Other { predecessor: place.predecessor },
    })
}

/// Makes a forgotten attempt the job's live one; one that is live by the rows is lost.
async fn adopt_attempt(
    tx: &mut Tx,
    job: JobId,
    state: JobState,
    row: &Fence,
    claimed: &Fence,
) -> Result<(), DbError> {
    let illegal = |error: crate::job::Illegal| DbError::Data(error.to_string());
    if state == JobState::Running {
        let change = state.on(Cause::Lost { exhausted: false }).map_err(illegal)?;
        let message = format!("attempt {} is running, which the database had forgotten", claimed.attempt);
        queue::transition(tx, job, change, &message).await?;
        events::append(tx, job, Event::new("lost", message, Some(row))).await?;
    }
    let change = JobState::Queued.on(Cause::Started).map_err(illegal)?;
    queue::transition(tx, job, change, "").await?;
    let phase = if claimed.generation == 0 { "LOADING" } else { "TRAINING" };
    sqlx::query!(
        "with made as (
           insert into attempts (job_id, attempt, phase, steps_before)
           select job_id, $2, $3, step from jobs where job_id = $1
         ) update jobs set attempt = $2, generation = 0, generation_id = '', world_size = 0 where job_id = $1",
        job.0,
        claimed.attempt_i32(),
        phase,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Writes down that the claimant holds its place, on any slot that no live place is on. False: its worker is gone, or
/// has another place in the attempt.
async fn hold(tx: &mut Tx, job: JobId, claim: &Claim) -> Result<bool, DbError> {
    // What it loaded is not said again. Members of a job agree about that, so any answer of a member will do; without
    // one, nothing is compared.
    let ready = sqlx::query_scalar!(
        r#"select ready as "ready!: Json<pb::Ready>" from places
           where job_id = $1 and ready is not null order by attempt = $2 desc, place = $3 desc, place limit 1"#,
        job.0,
        claim.fence.attempt_i32(),
        claim.place.to_i32(),
    )
    .fetch_optional(&mut **tx)
    .await?;
    let ready = (claim.fence.generation > 0).then(|| pb::Ready {
        job: job.name(),
        fence: Some((&claim.fence).into()),
        place: claim.place.0,
        ..ready.map(|ready| ready.0).unwrap_or_default()
    });
    // A place that comes back after its time was counted begins anew, so that this time is not counted again.
    let held = sqlx::query!(
        "insert into places (job_id, attempt, place, worker_id, worker, address, kind, slot, ready)
         select $1, $2, $3, w.worker_id, w.name, w.collective_address, w.kind,
                (select min(s) from generate_series(0, w.slots + 1024) s
                 where not exists (select 1 from places o where o.worker_id = w.worker_id and o.slot = s and o.live
                                   and not (o.job_id = $1 and o.attempt = $2 and o.place = $3))),
                $5
         from workers w
         where w.worker_id = $4 and w.state = 'LIVE'
           and not exists (select 1 from places o where o.job_id = $1 and o.attempt = $2 and o.worker_id = $4 and o.live
                           and o.place <> $3)
         on conflict (job_id, attempt, place) do update
         set worker_id = excluded.worker_id, worker = excluded.worker, address = excluded.address,
             kind = excluded.kind, slot = excluded.slot, live = true, outcome = null, end_time = null, message = '',
             parted = null, ready = coalesce(places.ready, excluded.ready), counted = false,
             start_time = case when places.counted then now() else places.start_time end",
        job.0,
        claim.fence.attempt_i32(),
        claim.place.to_i32(),
        claim.worker.0,
        ready.map(Json) as _,
    )
    .execute(&mut **tx)
    .await?;
    Ok(held.rows_affected() == 1)
}

/// Opens a generation above the rows' and the claimed one for the members that hold a state, and says so. What
/// nobody claims is held by the rows alone: whoever does is a newcomer, and loads first.
async fn go_on(
    tx: &mut Tx,
    job: JobId,
    row: &Fence,
    above: Option<u32>,
    taken: &[&Claim],
) -> Result<(), DbError> {
    let mut members: Vec<&Claim> = taken.iter().copied().filter(|claim| claim.fence.generation > 0).collect();
    members.sort_by_key(|claim| claim.place);
    let live = queue::lock_running(tx, job).await?;
    let (Some(above), Some(live), false) = (above, live, members.is_empty()) else {
        let message = format!("the database had forgotten {} of attempt {}", places(taken), row.attempt);
        return events::append(tx, job, Event::new("reclaimed", message, Some(row))).await;
    };
    let numbers: Vec<PlaceNo> = members.iter().map(|claim| claim.place).collect();
    know_claimed_generations(tx, job, &members).await?;
    forget_what_was_loaded(tx, job, row.attempt, &numbers).await?;
    let seated = queue::places(tx, job, row).await?;
    let seated = || seated.iter().filter(|place| numbers.contains(&place.place));
    let kinds: BTreeSet<&str> = seated().map(|place| place.kind.as_str()).collect();
    let kinds = kinds.into_iter().collect::<Vec<_>>().join(", ");
    let fence = row.next(above);
    let new = NewGeneration { fence: &fence, members: &numbers, start_step: live.step, kinds: &kinds };
    if !queue::open_generation(tx, &live, &new).await? {
        return Err(DbError::Data(format!("a fence of job {job} that changed under its lock")));
    }
    if let Some(ready) = seated().find_map(|place| place.ready.as_ref()).filter(|ready| ready.total_steps > 0)
    {
        queue::set_plan(tx, job, ready).await?;
    }
    let names: Vec<&str> = seated().map(|place| place.name.as_str()).collect();
    let message = format!(
        "the database had forgotten what the gang did up to generation {above}; it goes on in generation {}: {}",
        fence.generation,
        names.join(", ")
    );
    events::append(tx, job, Event::new("reclaimed", message, Some(&fence))).await
}

/// Manifests count, and can be adopted, only under a generation that the rows know, from one of its members.
async fn know_claimed_generations(tx: &mut Tx, job: JobId, members: &[&Claim]) -> Result<(), DbError> {
    for (index, claim) in members.iter().enumerate() {
        sqlx::query!(
            "insert into generations (job_id, attempt, generation, generation_id, world_size)
             values ($1, $2, $3, $4, $5) on conflict do nothing",
            job.0,
            claim.fence.attempt_i32(),
            claim.fence.generation_i32(),
            claim.fence.generation_id,
            convert::to_i32(u32::try_from(members.len()).unwrap_or(u32::MAX)),
        )
        .execute(&mut **tx)
        .await?;
        sqlx::query!(
            "insert into members (job_id, attempt, generation, index, place)
             select job_id, attempt, generation, $5, $6 from generations
             where job_id = $1 and attempt = $2 and generation = $3 and generation_id = $4 on conflict do nothing",
            job.0,
            claim.fence.attempt_i32(),
            claim.fence.generation_i32(),
            claim.fence.generation_id,
            convert::to_i32(u32::try_from(index).unwrap_or(u32::MAX)),
            claim.place.to_i32(),
        )
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

/// Live places beside these may be nobody's by now: one is a member again when its holder says that it has loaded, or
/// claims it.
async fn forget_what_was_loaded(
    tx: &mut Tx,
    job: JobId,
    attempt: u32,
    but: &[PlaceNo],
) -> Result<(), DbError> {
    let but: Vec<i32> = but.iter().map(|place| place.to_i32()).collect();
    sqlx::query!(
        "update places set ready = null, parted = null
         where job_id = $1 and attempt = $2 and live and place <> all($3)",
        job.0,
        convert::to_i32(attempt),
        &but,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn places(claims: &[&Claim]) -> String {
    let list: Vec<String> = claims.iter().map(|claim| claim.place.to_string()).collect();
    match list.as_slice() {
        [one] => format!("place {one}"),
        more => format!("places {}", more.join(", ")),
    }
}
