//! What the scheduler sees of the jobs that hold places, and of the places that ended.

use std::{collections::BTreeMap, time::Duration};

use sqlx::{PgPool, types::Json};
use uuid::Uuid;

use crate::{
    bars::{Ended, How},
    convert,
    db::DbError,
    ids::{JobId, TenantId, WorkerId},
    job::Phase,
    scheduler::Standing,
};

/// An attempt whose places are not all given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GangEntry {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// Whose it is.
    pub tenant: TenantId,
    /// The job's priority.
    pub priority: i32,
    /// Members that are left to it.
    pub min: u32,
    /// Members that it can use.
    pub max: u32,
    /// The kinds of its workers.
    pub kinds: Vec<String>,
    /// Labels that its workers must have.
    pub selector: BTreeMap<String, String>,
    /// Its base, as its spec names it.
    pub base: String,
    /// Time since its submission.
    pub age: Duration,
    /// How long it may still run, where its spec says so.
    pub run_limit: Option<Duration>,
    /// What it is about.
    pub standing: Standing,
    /// Its live places, by number.
    pub seats: Vec<SeatEntry>,
}

/// A live place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeatEntry {
    /// Its number.
    pub place: u32,
    /// Its holder.
    pub worker: WorkerId,
    /// It was asked to leave.
    pub leaving: bool,
}

/// Every attempt that holds places, by age of its job.
pub async fn gangs(pool: &PgPool) -> Result<Vec<GangEntry>, DbError> {
    let rows = sqlx::query!(
        r#"select j.job_id, j.tenant_id, j.priority, j.workers_min, j.workers_max, p.attempt, a.phase, j.base as "base!",
                  j.selector as "selector: Json<BTreeMap<String, String>>",
                  extract(epoch from a.start_time - greatest(j.create_time, j.not_before))::float8 - j.run_seconds as "age!",
                  j.max_run_seconds - j.run_seconds - extract(epoch from now() - a.start_time)::float8 as "run_limit",
                  j.yielding is not null as "yielding!",
                  array_agg(distinct p.kind) as "kinds!", array_agg(p.place order by p.place) as "places!",
                  array_agg(p.worker_id order by p.place) as "workers!",
                  array_agg(p.leaving is not null order by p.place) as "leaving!"
           from places p
           join attempts a on a.job_id = p.job_id and a.attempt = p.attempt
           join jobs j on j.job_id = p.job_id
           where p.live
           group by j.job_id, p.attempt, a.phase, a.start_time order by j.number, p.attempt"#
    )
    .fetch_all(pool)
    .await?;
    let mut gangs = Vec::with_capacity(rows.len());
    for row in rows {
        let phase = Phase::parse(&row.phase).ok_or_else(|| DbError::Data(format!("phase {}", row.phase)))?;
        let seats = row.places.into_iter().zip(row.workers).zip(row.leaving);
        let seat = |((place, worker), leaving): ((i32, Uuid), bool)| SeatEntry {
            place: convert::to_u32(place),
            worker: WorkerId(worker),
            leaving,
        };
        gangs.push(GangEntry {
            job: JobId(row.job_id),
            attempt: convert::to_u32(row.attempt),
            tenant: TenantId(row.tenant_id),
            priority: row.priority,
            min: convert::to_u32(row.workers_min),
            max: convert::to_u32(row.workers_max),
            kinds: row.kinds,
            selector: row.selector.0,
            base: row.base,
            age: convert::seconds(row.age),
            run_limit: row.run_limit.map(convert::seconds),
            // One that gives way is about to give all its places back, whatever it does until then.
            standing: if row.yielding { Standing::Ending } else { standing(phase) },
            seats: seats.map(seat).collect(),
        });
    }
    Ok(gangs)
}

/// How long running jobs still train, as they say themselves; those that cannot say are left out.
pub async fn time_left(pool: &PgPool) -> Result<Vec<(JobId, Duration)>, DbError> {
    let rows = sqlx::query!(
        "select j.job_id, p.seconds_left from jobs j
         cross join lateral (select seconds_left from metric_points m where m.job_id = j.job_id
                             order by step desc limit 1) p
         where j.state = 'RUNNING' and p.seconds_left > 0"
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (JobId(row.job_id), convert::seconds(row.seconds_left))).collect())
}

fn standing(phase: Phase) -> Standing {
    match phase {
        Phase::Loading => Standing::Loading,
        Phase::Training => Standing::Training,
        Phase::Closing | Phase::Ended => Standing::Ending,
    }
}

/// The places that ended in live attempts in a way that bars their workers, with whoever has their names now.
pub async fn troubled_places(pool: &PgPool) -> Result<Vec<Ended>, DbError> {
    let rows = sqlx::query!(
        r#"select p.job_id, p.attempt, p.place, w.worker_id,
                  p.outcome = 'EXPELLED' and not m.joined as "unfit!"
           from jobs j
           join places p on p.job_id = j.job_id and p.attempt = j.attempt and not p.live
           join workers w on w.name = p.worker and w.state = 'LIVE'
           cross join lateral (
             select exists (select 1 from members m where m.job_id = p.job_id and m.attempt = p.attempt
                            and m.place = p.place) as joined
           ) m
           where j.state = 'RUNNING'
             and (p.outcome = 'EXPELLED' or (p.outcome in ('LOST', 'FAILED') and not m.joined))"#
    )
    .fetch_all(pool)
    .await?;
    let ended = |row: (Uuid, i32, i32, Uuid, bool)| Ended {
        job: JobId(row.0),
        attempt: convert::to_u32(row.1),
        place: convert::to_u32(row.2),
        worker: WorkerId(row.3),
        how: if row.4 { How::Unfit } else { How::Troubled },
    };
    Ok(rows.into_iter().map(|r| ended((r.job_id, r.attempt, r.place, r.worker_id, r.unfit))).collect())
}
