//! Checkpoints' rows: written under the fence, expired by the keep rule, adopted from the store, listed.

use chrono::{DateTime, Utc};
use lorafleet_proto::v1 as pb;
use lorafleet_store::{CheckpointId, Store, StoreError, files_are_there, sweep_torn};
use sqlx::{PgConnection, PgPool, types::Json};
use tracing::{info, warn};

use crate::{
    convert,
    db::DbError,
    ids::{Fence, JobId},
};

/// Newest checkpoints that a gang is offered to resume from, and that are looked at for adoption.
const RESUME: usize = 8;

/// A row that could not be read or written while manifests were adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The object store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether a checkpoint that a member reports is named as it must be: this job, this step, this fence.
pub fn belongs_to(checkpoint: &pb::Checkpoint, job: JobId, fence: &Fence) -> Option<CheckpointId> {
    let (named_job, id) = CheckpointId::parse_resource_name(&checkpoint.name).ok()?;
    let same = named_job.as_str() == job.to_string()
        && Fence::from(id.fence()) == *fence
        && id.step() == checkpoint.step;
    same.then_some(id)
}

/// Stores a checkpoint's row; false when it was there. The caller holds the job's lock and has checked the fence.
pub async fn insert(
    tx: &mut PgConnection,
    job: JobId,
    id: &CheckpointId,
    checkpoint: &pb::Checkpoint,
    is_final: bool,
) -> Result<bool, DbError> {
    let fence = Fence::from(id.fence());
    let made = sqlx::query_scalar!(
        r#"insert into checkpoints (job_id, name, step, attempt, generation, files, manifest_sha256, final, best,
                                    bytes, tenant_id)
           select job_id, $2, $3, $4, $5, $6, $7, $8, $9, $10, tenant_id from jobs where job_id = $1
           on conflict (job_id, name) do update set final = checkpoints.final or excluded.final,
               best = checkpoints.best or excluded.best,
               expired = checkpoints.expired and not excluded.final
           returning (xmax = 0) as "made!""#,
        job.0,
        id.to_string(),
        convert::to_i64(id.step()),
        fence.attempt_i32(),
        fence.generation_i32(),
        Json(&checkpoint.files) as _,
        checkpoint.manifest_sha256,
        is_final,
        checkpoint.best,
        convert::to_i64(checkpoint.files.iter().map(|file| file.size_bytes).fold(0, u64::saturating_add)),
    )
    .fetch_one(&mut *tx)
    .await?;
    if checkpoint.best {
        // There is one: the one that was told last, also where an evaluation was made again from an earlier step.
        sqlx::query!(
            "update checkpoints set best = false where job_id = $1 and best and name <> $2",
            job.0,
            id.to_string(),
        )
        .execute(&mut *tx)
        .await?;
    }
    sqlx::query!(
        "update jobs set step = $2 where job_id = $1 and step < $2",
        job.0,
        convert::to_i64(id.step())
    )
    .execute(tx)
    .await?;
    Ok(made)
}

/// Applies the keep rule: the newest `checkpoint.keep` stay, and beside them the best, the final one, and those of steps
/// that `checkpoint.keep_every` divides. Returns the ids that it lets go now.
pub async fn expire(tx: &mut PgConnection, job: JobId) -> Result<Vec<String>, DbError> {
    let expired = sqlx::query_scalar!(
        "with rule as (
           select greatest(coalesce((spec->'checkpoint'->>'keep')::int, 1), 1) as keep,
                  coalesce((spec->'checkpoint'->>'keepEvery')::bigint, 0) as keep_every
           from jobs where job_id = $1
         ), passing as (
           select c.name, row_number() over (order by c.step desc, c.attempt desc, c.generation desc) as age
           from checkpoints c, rule
           where c.job_id = $1 and not c.expired and not c.final and not c.best
             and (rule.keep_every = 0 or c.step % rule.keep_every <> 0)
         )
         update checkpoints set expired = true from passing, rule
         where checkpoints.job_id = $1 and checkpoints.name = passing.name and passing.age > rule.keep
         returning checkpoints.name",
        job.0,
    )
    .fetch_all(tx)
    .await?;
    Ok(expired)
}

/// Ids that the keep rule let go before, newest first: for an acknowledgement that is sent again.
pub async fn expired(tx: &mut PgConnection, job: JobId) -> Result<Vec<String>, DbError> {
    let expired = sqlx::query_scalar!(
        "select name from checkpoints where job_id = $1 and expired order by step desc limit 16",
        job.0,
    )
    .fetch_all(tx)
    .await?;
    Ok(expired)
}

/// The whole checkpoints that a generation may resume from when no member holds a state, newest first: those of earlier
/// generations. Members may see different lists, where a late row comes between; they agree on who is ahead anyway.
pub async fn resumable(pool: &PgPool, job: JobId, fence: &Fence) -> Result<Vec<pb::Checkpoint>, DbError> {
    let rows = sqlx::query_as!(
        CheckpointRow,
        r#"select name, step, create_time, files as "files: Json<Vec<pb::CheckpointFile>>", manifest_sha256, final, best
           from checkpoints where job_id = $1 and not expired and (attempt, generation) < ($2, $3)
           order by step desc, attempt desc, generation desc limit $4"#,
        job.0,
        fence.attempt_i32(),
        fence.generation_i32(),
        RESUME as i64,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| row.message(job)).collect())
}

/// What a job came to: its final checkpoint.
pub async fn result_of(pool: &PgPool, job: JobId) -> Result<Option<pb::Checkpoint>, DbError> {
    let row = sqlx::query_as!(
        CheckpointRow,
        r#"select name, step, create_time, files as "files: Json<Vec<pb::CheckpointFile>>", manifest_sha256, final, best
           from checkpoints where job_id = $1 and final and not expired
           order by step desc, attempt desc, generation desc limit 1"#,
        job.0,
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| row.message(job)))
}

/// The step of the newest whole checkpoint; 0 without one.
pub async fn newest_step(tx: &mut PgConnection, job: JobId) -> Result<u64, DbError> {
    let step = sqlx::query_scalar!(
        r#"select coalesce(max(step), 0) as "step!" from checkpoints where job_id = $1 and not expired"#,
        job.0,
    )
    .fetch_one(tx)
    .await?;
    Ok(convert::to_u64(step))
}

/// At most `limit` checkpoints of a job before an id, newest first: ids begin with the step.
pub async fn list(
    pool: &PgPool,
    job: JobId,
    before: Option<&str>,
    limit: u32,
) -> Result<Vec<pb::Checkpoint>, DbError> {
    let rows = sqlx::query_as!(
        CheckpointRow,
        r#"select name, step, create_time, files as "files: Json<Vec<pb::CheckpointFile>>", manifest_sha256, final, best
           from checkpoints where job_id = $1 and not expired and ($2::text is null or name < $2)
           order by name desc limit $3"#,
        job.0,
        before,
        i64::from(limit),
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| row.message(job)).collect())
}

/// Gives rows to whole checkpoints in the store that have none, because their gang died between manifest and row. Only
/// those whose fence the job really had before `attempt`. Damaged manifests, and those whose files are gone, are left
/// alone.
pub async fn adopt(pool: &PgPool, store: &Store, job: JobId, attempt: u32) -> Result<u32, AdoptError> {
    let Ok(in_store) = job.to_string().parse::<lorafleet_store::JobId>() else { return Ok(0) };
    let ids = lorafleet_store::list_checkpoints(store, &in_store).await?;
    let mut adopted = 0;
    for id in ids.iter().filter(|id| id.fence().attempt < attempt).take(RESUME) {
        if !is_adoptable(pool, job, id).await? {
            continue;
        }
        let found = match lorafleet_store::find_checkpoint(store, &in_store, id).await {
            Ok(Some(found)) if files_are_there(store, &found).await? => found.to_proto(),
            Ok(Some(_)) => {
                warn!(%job, checkpoint = %id, "manifest not adopted: its files are not there");
                continue;
            }
            Ok(None) => continue,
            Err(error @ StoreError::Manifest { .. }) => {
                warn!(%job, checkpoint = %id, %error, "manifest not adopted");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let mut tx = pool.begin().await.map_err(DbError::from)?;
        adopted += u32::from(insert(&mut tx, job, id, &found, found.r#final).await?);
        tx.commit().await.map_err(DbError::from)?;
    }
    sweep(store.clone(), in_store, attempt);
    Ok(adopted)
}

/// Deletes, while the gang begins, what earlier attempts began to write and never finished.
fn sweep(store: Store, job: lorafleet_store::JobId, attempt: u32) {
    tokio::spawn(async move {
        match sweep_torn(&store, &job, |id| id.fence().attempt < attempt).await {
            Ok(swept) if swept.is_empty() => {}
            Ok(swept) => info!(%job, checkpoints = swept.len(), "unfinished checkpoints deleted"),
            Err(error) => warn!(%job, %error, "unfinished checkpoints not deleted"),
        }
    });
}

/// It has no row, and its fence is one that the job had.
async fn is_adoptable(pool: &PgPool, job: JobId, id: &CheckpointId) -> Result<bool, DbError> {
    let fence = Fence::from(id.fence());
    let adoptable = sqlx::query_scalar!(
        r#"select exists (select 1 from generations where job_id = $1 and attempt = $2 and generation = $3
                          and generation_id = $4)
              and not exists (select 1 from checkpoints where job_id = $1 and name = $5) as "adoptable!""#,
        job.0,
        fence.attempt_i32(),
        fence.generation_i32(),
        fence.generation_id,
        id.to_string(),
    )
    .fetch_one(pool)
    .await?;
    Ok(adoptable)
}

struct CheckpointRow {
    name: String,
    step: i64,
    create_time: DateTime<Utc>,
    files: Json<Vec<pb::CheckpointFile>>,
    manifest_sha256: String,
    r#final: bool,
    best: bool,
}

impl CheckpointRow {
    fn message(self, job: JobId) -> pb::Checkpoint {
        pb::Checkpoint {
            name: format!("{}/checkpoints/{}", job.name(), self.name),
            step: convert::to_u64(self.step),
            create_time: Some(convert::timestamp(self.create_time)),
            files: self.files.0,
            manifest_sha256: self.manifest_sha256,
            r#final: self.r#final,
            best: self.best,
        }
    }
}
