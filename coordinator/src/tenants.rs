//! Tenants: whose jobs are whose, and what each may use.

mod rows;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use crate::{db::DbError, fresh::Fresh, ids::TenantId};

pub use rows::{DeleteTenantError, create, delete, get, list, shares, update};

/// Name of the tenant that is always there.
pub const DEFAULT_TENANT: &str = "default";
/// A change by another coordinator is seen after this time at the latest.
const KEEP: Duration = Duration::from_secs(3);

/// Those that jobs belong to.
#[derive(Clone, Debug, PartialEq)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Order of creation, the key of pages.
    pub number: i64,
    /// What jobs call it.
    pub name: String,
    /// What it may use.
    pub settings: Settings,
    /// When it was made.
    pub create_time: DateTime<Utc>,
}

/// What a tenant may use.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Its part of a contended fleet, against the weights of the others.
    pub weight: f64,
    /// Quotas; `None`: no limit.
    pub quotas: Quotas,
}

/// Limits of what a tenant uses; `None`: none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Workers that its jobs hold at once.
    pub max_workers: Option<u32>,
    /// Jobs that wait.
    pub max_queued: Option<u32>,
    /// Worker-seconds in the last `window`.
    pub max_worker_seconds: Option<u64>,
    /// See there.
    pub window: Duration,
    /// Bytes of its jobs' checkpoints in the store.
    pub max_stored_bytes: Option<u64>,
}

/// Tenants by name, read a moment ago or now.
#[derive(Debug)]
pub struct Directory {
    pool: PgPool,
    fresh: Fresh<String, Arc<Tenant>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { weight: 1.0, quotas: Quotas::default() }
    }
}

impl Default for Quotas {
    fn default() -> Self {
        let week = Duration::from_secs(7 * 24 * 3600);
        Self {
            max_workers: None,
            max_queued: None,
            max_worker_seconds: None,
            window: week,
            max_stored_bytes: None,
        }
    }
}

// === impl Directory ===

impl Directory {
    /// A directory that has read nothing yet.
    pub fn new(pool: PgPool) -> Arc<Self> {
        Arc::new(Self { pool, fresh: Fresh::new(KEEP) })
    }

    /// The tenant of this name, as it was a few seconds ago at most.
    pub async fn find(&self, name: &str) -> Result<Option<Arc<Tenant>>, DbError> {
        let now = Instant::now();
        if let Some(tenant) = self.fresh.get(name, now) {
            return Ok(Some(tenant));
        }
        let Some(tenant) = rows::get(&self.pool, name).await?.map(Arc::new) else { return Ok(None) };
        self.fresh.put(name.to_owned(), tenant.clone(), now);
        Ok(Some(tenant))
    }

    /// Something was changed here.
    pub fn changed(&self) {
        self.fresh.clear();
    }
}
