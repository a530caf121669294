//! Every statement about tenants.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use super::{Quotas, Settings, Tenant};
use crate::{convert, db::DbError, ids::TenantId};

/// Why a tenant could not be deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteTenantError {
    /// There is no such tenant.
    #[error("there is no such tenant")]
    NotFound,
    /// Jobs belong to it.
    #[error("it has jobs")]
    HasJobs,
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
}

struct Row {
    tenant_id: Uuid,
    number: i64,
    name: String,
    weight: f64,
    max_workers: Option<i32>,
    max_queued: Option<i32>,
    max_worker_seconds: Option<i64>,
    window_seconds: i64,
    max_stored_bytes: Option<i64>,
    create_time: DateTime<Utc>,
}

// The statement reads columns in one order everywhere; the macro checks each use against the schema.
macro_rules! select_tenant {
    ($tail:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            "select tenant_id, number, name, weight, max_workers, max_queued, max_worker_seconds, window_seconds,
                    max_stored_bytes, create_time
             from tenants " + $tail
            $(, $argument)*
        )
    };
}

/// One tenant.
pub async fn get(pool: &PgPool, name: &str) -> Result<Option<Tenant>, DbError> {
    Ok(select_tenant!("where name = $1", name).fetch_optional(pool).await?.map(Row::tenant))
}

/// At most `limit` tenants after number `after`, in order of creation.
pub async fn list(pool: &PgPool, after: i64, limit: u32) -> Result<Vec<Tenant>, DbError> {
    let rows = select_tenant!("where number > $1 order by number limit $2", after, i64::from(limit));
    Ok(rows.fetch_all(pool).await?.into_iter().map(Row::tenant).collect())
}

/// What the scheduler goes by: each tenant's weight, and how many workers it may run at once.
pub async fn shares(pool: &PgPool) -> Result<Vec<(TenantId, f64, Option<u32>)>, DbError> {
    let rows = sqlx::query!("select tenant_id, weight, max_workers from tenants").fetch_all(pool).await?;
    let share = |max: Option<i32>| max.map(convert::to_u32);
    Ok(rows.into_iter().map(|row| (TenantId(row.tenant_id), row.weight, share(row.max_workers))).collect())
}

/// Makes a tenant; `None` when there is one of that name.
pub async fn create(pool: &PgPool, name: &str, settings: &Settings) -> Result<Option<Tenant>, DbError> {
    let quotas = &settings.quotas;
    let row = sqlx::query_as!(
        Row,
        "insert into tenants (tenant_id, name, weight, max_workers, max_queued, max_worker_seconds, window_seconds,
                              max_stored_bytes)
         values ($1, $2, $3, $4, $5, $6, $7, $8)
         on conflict (name) do nothing
         returning tenant_id, number, name, weight, max_workers, max_queued, max_worker_seconds, window_seconds,
                   max_stored_bytes, create_time",
        TenantId::new().0,
        name,
        settings.weight,
        quotas.max_workers.map(convert::to_i32),
        quotas.max_queued.map(convert::to_i32),
        quotas.max_worker_seconds.map(convert::to_i64),
        convert::to_i64(quotas.window.as_secs()),
        quotas.max_stored_bytes.map(convert::to_i64),
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(Row::tenant))
}

/// Changes what a tenant may use; `None` when there is no such tenant.
pub async fn update(
    pool: &PgPool,
    name: &str,
    change: impl FnOnce(&mut Settings) + Send,
) -> Result<Option<Tenant>, DbError> {
    let mut tx = pool.begin().await?;
    let row = select_tenant!("where name = $1 for no key update", name).fetch_optional(&mut *tx).await?;
    let Some(mut tenant) = row.map(Row::tenant) else { return Ok(None) };
    change(&mut tenant.settings);
    let Settings { weight, quotas } = &tenant.settings;
    sqlx::query!(
        "update tenants set weight = $2, max_workers = $3, max_queued = $4, max_worker_seconds = $5, window_seconds = $6,
                max_stored_bytes = $7
         where tenant_id = $1",
        tenant.id.0,
        *weight,
        quotas.max_workers.map(convert::to_i32),
        quotas.max_queued.map(convert::to_i32),
        quotas.max_worker_seconds.map(convert::to_i64),
        convert::to_i64(quotas.window.as_secs()),
        quotas.max_stored_bytes.map(convert::to_i64),
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(Some(tenant))
}

/// Deletes a tenant that has no jobs, with its tokens.
pub async fn delete(pool: &PgPool, name: &str) -> Result<(), DeleteTenantError> {
    let mut tx = pool.begin().await.map_err(DbError::from)?;
    let done = delete_in(&mut tx, name).await;
    if done.is_ok() {
        tx.commit().await.map_err(DbError::from)?;
    }
    done
}

async fn delete_in(tx: &mut sqlx::PgConnection, name: &str) -> Result<(), DeleteTenantError> {
    let tenant = sqlx::query_scalar!("select tenant_id from tenants where name = $1 for update", name)
        .fetch_optional(&mut *tx)
        .await
        .map_err(DbError::from)?
        .ok_or(DeleteTenantError::NotFound)?;
    // Submissions read the tenant and lock no row of it, which would be the hottest of all. So whoever deletes one, which
    // is rare, waits for the submissions under way, and lets none begin; not for long, since others wait behind.
    sqlx::query!("set local lock_timeout = '2s'").execute(&mut *tx).await.map_err(DbError::from)?;
    sqlx::query!("lock table jobs in share mode").execute(&mut *tx).await.map_err(DbError::from)?;
    let used =
        sqlx::query_scalar!(r#"select exists (select 1 from jobs where tenant_id = $1) as "used!""#, tenant);
    if used.fetch_one(&mut *tx).await.map_err(DbError::from)? {
        return Err(DeleteTenantError::HasJobs);
    }
    sqlx::query!("delete from api_tokens where tenant_id = $1", tenant)
        .execute(&mut *tx)
        .await
        .map_err(DbError::from)?;
    sqlx::query!("delete from tenants where tenant_id = $1", tenant)
        .execute(&mut *tx)
        .await
        .map_err(DbError::from)?;
    Ok(())
}

// === impl Row ===

impl Row {
    fn tenant(self) -> Tenant {
        let count = |n: Option<i32>| n.map(convert::to_u32);
        let amount = |n: Option<i64>| n.map(convert::to_u64);
        let quotas = Quotas {
            max_workers: count(self.max_workers),
            max_queued: count(self.max_queued),
            max_worker_seconds: amount(self.max_worker_seconds),
            window: Duration::from_secs(convert::to_u64(self.window_seconds)),
            max_stored_bytes: amount(self.max_stored_bytes),
        };
        Tenant {
            id: TenantId(self.tenant_id),
            number: self.number,
            name: self.name,
            settings: Settings { weight: self.weight, quotas },
            create_time: self.create_time,
        }
    }
}
