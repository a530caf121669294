//! Workers and their leases: registration, heartbeats, expiry, and what of the fleet is free.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use lorafleet_proto::v1 as pb;
use sqlx::{PgPool, types::Json};
use uuid::Uuid;

use crate::{
    convert,
    db::DbError,
    ids::{JobId, WorkerId},
    scheduler,
};

/// Registrations of one name that may collide before the call gives up.
const REGISTER_TRIES: usize = 3;

/// A live worker's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The worker.
    pub worker: WorkerId,
    /// Raised whenever it is heard of.
    pub counter: i64,
    /// Its stream ended, and it was not heard of since.
    pub closed: bool,
}

/// Makes a worker process known, with a fresh lease. Another process of that name is gone from now on; whatever it
/// held is taken from it by the scheduler. The same process, still known, stays who it is: it asks again because it
/// did not get the answer.
pub async fn register(pool: &PgPool, request: &pb::RegisterWorkerRequest) -> Result<WorkerId, DbError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match register_once(pool, request).await {
            Err(error) if error.unique_violation() == Some("workers_live_name") && tries < REGISTER_TRIES => {
            }
            other => return other,
        }
    }
}

async fn register_once(pool: &PgPool, request: &pb::RegisterWorkerRequest) -> Result<WorkerId, DbError> {
    let worker = WorkerId::random();
    let resources = request.resources.clone().unwrap_or_default();
    let mut tx = pool.begin().await?;
    let known = sqlx::query_scalar!(
        "select worker_id from workers where name = $1 and state = 'LIVE' and process_id = $2 and $2 <> ''",
        request.name,
        request.process_id,
    )
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(known) = known {
        return Ok(WorkerId(known));
    }
    sqlx::query!(
        "with earlier as (update workers set state = 'GONE', gone_time = now() where name = $1 and state = 'LIVE'
                          returning worker_id)
         delete from worker_leases l using earlier where l.worker_id = earlier.worker_id",
        request.name,
    )
    .execute(&mut *tx)
    .await?;
    // Of processes that are gone, the newest of each name stays to be looked at.
    sqlx::query!(
        "delete from workers w where w.name = $1 and w.state = 'GONE'
           and w.number < (select max(number) from workers where name = $1)
           and not exists (select 1 from places m where m.worker_id = w.worker_id and m.live)",
        request.name,
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "with made as (
           insert into workers (worker_id, name, resources, kind, slots, collective_address, process_id,
                                labels)
           values ($1, $2, $3, $4, $5, $6, $7, $8) returning worker_id
         ) insert into worker_leases (worker_id) select worker_id from made",
        worker.0,
        request.name,
        Json(&resources) as _,
        resources.kind,
        convert::to_i32(resources.slots),
        request.collective_address,
        request.process_id,
        Json(scheduler::labels_of(request)) as _,
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(worker)
}

/// Raises the counters of workers that were heard of, in one statement. Returns those that still hold their lease.
pub async fn beat(pool: &PgPool, workers: &[WorkerId]) -> Result<Vec<WorkerId>, DbError> {
    // Sorted, so that two coordinators that hold a stream of the same worker lock in one order.
    let mut ids: Vec<Uuid> = workers.iter().map(|worker| worker.0).collect();
    ids.sort_unstable();
    let held = sqlx::query_scalar!(
        "update worker_leases set counter = counter + 1, closed = false where worker_id = any($1) returning worker_id",
        &ids,
    )
    .fetch_all(pool)
    .await?;
    Ok(held.into_iter().map(WorkerId).collect())
}

/// Writes down that a worker's stream has ended.
pub async fn set_closed(pool: &PgPool, worker: WorkerId) -> Result<(), DbError> {
    sqlx::query!("update worker_leases set closed = true where worker_id = $1", worker.0)
        .execute(pool)
        .await?;
    Ok(())
}

/// Whether a worker that holds no lease is known to have lost it to another process of its name.
pub async fn is_superseded(pool: &PgPool, worker: WorkerId) -> Result<bool, DbError> {
    let superseded = sqlx::query_scalar!(
        r#"select exists (
             select 1 from workers old join workers new on new.name = old.name and new.state = 'LIVE'
             where old.worker_id = $1 and old.state = 'GONE' and old.process_id <> new.process_id
               and old.process_id <> '' and new.process_id <> ''
           ) as "superseded!""#,
        worker.0,
    );
    Ok(superseded.fetch_one(pool).await?)
}

/// All leases.
pub async fn leases(pool: &PgPool) -> Result<Vec<Lease>, DbError> {
    let rows = sqlx::query!("select worker_id, counter, closed from worker_leases").fetch_all(pool).await?;
    let lease = |worker, counter, closed| Lease { worker: WorkerId(worker), counter, closed };
    Ok(rows.into_iter().map(|row| lease(row.worker_id, row.counter, row.closed)).collect())
}

/// The workers of each gang that runs, as far as they are there.
pub async fn gangs(pool: &PgPool) -> Result<Vec<Vec<WorkerId>>, DbError> {
    let rows = sqlx::query_scalar!(
        r#"select array_agg(m.worker_id) as "workers!"
           from places m join jobs j on j.job_id = m.job_id and j.attempt = m.attempt and j.state = 'RUNNING'
           where m.live group by m.job_id"#
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|workers| workers.into_iter().map(WorkerId).collect()).collect())
}

/// Ends a lease whose counter still stands where it was seen. Returns the worker's name, or nothing when it was heard
/// of in the meantime.
pub async fn end_lease(pool: &PgPool, worker: WorkerId, counter: i64) -> Result<Option<String>, DbError> {
    let name = sqlx::query_scalar!(
        "with ended as (delete from worker_leases where worker_id = $1 and counter = $2 returning worker_id)
         update workers w set state = 'GONE', gone_time = now() from ended
         where w.worker_id = ended.worker_id returning w.name",
        worker.0,
        counter,
    )
    .fetch_optional(pool)
    .await?;
    Ok(name)
}

/// A worker that takes no more work has left: its lease ends at once, unless it still holds a place.
pub async fn leave(pool: &PgPool, worker: WorkerId) -> Result<(), DbError> {
    sqlx::query!(
        "with ended as (
           delete from worker_leases l using workers w
           where l.worker_id = $1 and w.worker_id = $1 and w.draining
             and not exists (select 1 from places m where m.worker_id = $1 and m.live)
           returning l.worker_id
         ) update workers w set state = 'GONE', gone_time = now() from ended where w.worker_id = ended.worker_id",
        worker.0,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// A worker takes no new work, or takes it again.
pub async fn set_draining(pool: &PgPool, worker: WorkerId, draining: bool) -> Result<(), DbError> {
    sqlx::query!(
        "update workers set draining = $2 where worker_id = $1 and draining <> $2",
        worker.0,
        draining
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// A worker that takes work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreeWorker {
    /// The worker.
    pub worker: WorkerId,
    /// Its kind.
    pub kind: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its free slots.
    pub free: Vec<u32>,
}

/// The workers that take work, in order of registration, with their free slots. One whose connection closed is most
/// likely dead: it gets nothing before it is heard of again.
pub async fn free(pool: &PgPool) -> Result<Vec<FreeWorker>, DbError> {
    let rows = sqlx::query!(
        r#"select w.worker_id, w.kind, w.slots, w.labels as "labels: Json<BTreeMap<String, String>>",
                  array(select m.slot from places m where m.worker_id = w.worker_id and m.live) as "taken!"
           from workers w join worker_leases l on l.worker_id = w.worker_id and not l.closed
           where w.state = 'LIVE' and not w.draining order by w.number"#
    )
    .fetch_all(pool)
    .await?;
    let workers = rows.into_iter().map(|row| FreeWorker {
        worker: WorkerId(row.worker_id),
        kind: row.kind,
        labels: row.labels.0,
        free: free_slots(row.slots, &row.taken),
    });
    Ok(workers.collect())
}

/// The slots of a worker that can take a place. What was reclaimed after a failover may lie beyond its slots, beside a
/// place that was given since: the worker runs one after the other, and gets no third meanwhile.
fn free_slots(slots: i32, taken: &[i32]) -> Vec<u32> {
    let left = usize::try_from(slots).unwrap_or(0).saturating_sub(taken.len());
    (0..slots).filter(|slot| !taken.contains(slot)).map(convert::to_u32).take(left).collect()
}

/// A worker's row, for the API.
#[derive(Debug)]
pub struct WorkerRow {
    /// It is gone.
    pub gone: bool,
    /// Order of registration.
    pub number: i64,
    /// What is shown.
    pub message: pb::Worker,
}

/// At most `limit` workers after (gone, number), live ones first, in order of registration.
pub async fn list(pool: &PgPool, after: (bool, i64), limit: u32) -> Result<Vec<WorkerRow>, DbError> {
    let rows = sqlx::query_as!(
        ListedWorker,
        r#"select w.number, w.name, w.state = 'GONE' as "gone!", w.draining,
                  w.resources as "resources: Json<pb::WorkerResources>", w.collective_address, w.register_time,
                  w.labels as "labels: Json<BTreeMap<String, String>>",
                  array(select m.job_id from places m where m.worker_id = w.worker_id and m.live
                        order by m.slot) as "jobs!"
           from workers w where (w.state = 'GONE', w.number) > ($1, $2)
           order by (w.state = 'GONE'), w.number limit $3"#,
        after.0,
        after.1,
        i64::from(limit),
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(ListedWorker::row).collect())
}

struct ListedWorker {
    number: i64,
    name: String,
    gone: bool,
    draining: bool,
    resources: Json<pb::WorkerResources>,
    collective_address: String,
    register_time: DateTime<Utc>,
    labels: Json<BTreeMap<String, String>>,
    jobs: Vec<Uuid>,
}

impl ListedWorker {
    fn row(self) -> WorkerRow {
        let state = match (self.gone, self.draining) {
            (true, _) => pb::WorkerState::Gone,
            (false, true) => pb::WorkerState::Draining,
            (false, false) => pb::WorkerState::Ready,
        };
        let message = pb::Worker {
            name: format!("workers/{}", self.name),
            state: state.into(),
            resources: Some(self.resources.0),
            collective_address: self.collective_address,
            register_time: Some(convert::timestamp(self.register_time)),
            jobs: self.jobs.into_iter().map(|job| JobId(job).name()).collect(),
            labels: self.labels.0,
        };
        WorkerRow { gone: self.gone, number: self.number, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_holds_more_than_its_slots_has_none_free() {
        assert_eq!(free_slots(2, &[]), [0, 1]);
        assert_eq!(free_slots(2, &[1]), [0]);
        assert_eq!(free_slots(1, &[1]), [0; 0], "what was reclaimed lies beyond its one slot");
        assert_eq!(free_slots(3, &[0, 5]), [1]);
    }
}
