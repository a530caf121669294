//! Quotas of tenants: what a submission may still add, and whose jobs wait until less was used lately.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

use sqlx::{PgConnection, PgPool};

use crate::{convert, db::DbError, ids::TenantId};

/// A quota that a submission would pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// Jobs that wait.
    #[error(
        "tenant {tenant} may have {limit} jobs in the queue (max_queued): {used} wait, and this submission has {added}; \
         submit again when enough of them have started or were cancelled, or ask an admin for a larger quota"
    )]
    Queued {
        /// Whose.
        tenant: String,
        /// How many wait.
        used: u64,
        /// How many more that would be.
        added: u64,
        /// How many may.
        limit: u64,
    },
    /// Bytes of checkpoints.
    #[error(
        "tenant {tenant} may keep {limit} bytes of checkpoints (max_stored_bytes), and its jobs have {used} in the store; \
         they become less when a job's checkpoint.keep lets some go or old jobs are deleted; an admin can raise the quota"
    )]
    Stored {
        /// Whose.
        tenant: String,
        /// What there is.
        used: u64,
        /// What may be there.
        limit: u64,
    },
}

/// Why a submission is not let in.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// A quota.
    #[error(transparent)]
    Exceeded(#[from] Exceeded),
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<sqlx::Error> for AdmitError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

/// What a tenant used in its window, when that is as much as it may.
#[derive(Clone, Debug, PartialEq)]
pub struct OverBudget {
    /// Its name.
    pub tenant: String,
    /// Worker-seconds in the window.
    pub used: f64,
    /// What it may use in a window.
    pub limit: u64,
    /// How long the window is, up to now.
    pub window: Duration,
}

/// Says no when jobs that were stored in this transaction are more than their tenants may have. The tenants' rows stay
/// locked until the transaction ends: two submissions at once do not pass a quota together. For tenants that have one.
pub async fn admit(tx: &mut PgConnection, added: &BTreeMap<TenantId, u64>) -> Result<(), AdmitError> {
    for (tenant, added) in added {
        let quota = sqlx::query!(
            "select name, max_queued, max_stored_bytes from tenants where tenant_id = $1 for no key update",
            tenant.0,
        );
        let Some(quota) = quota.fetch_optional(&mut *tx).await? else { continue };
        // Another statement: it sees what was committed while the lock was waited for.
        let used = sqlx::query!(
            r#"select case when $2 then (select count(*) from jobs where tenant_id = $1 and state = 'QUEUED')
                      else 0 end as "queued!",
                      case when $3 then (select coalesce(sum(bytes), 0)::bigint from checkpoints
                                         where tenant_id = $1 and not expired)
                      else 0 end as "stored!""#,
            tenant.0,
            quota.max_queued.is_some(),
            quota.max_stored_bytes.is_some(),
        );
        let used = used.fetch_one(&mut *tx).await?;
        let (queued, stored) = (convert::to_u64(used.queued), convert::to_u64(used.stored));
        if let Some(limit) = quota.max_queued.map(|limit| u64::from(convert::to_u32(limit)))
            && queued > limit
        {
            let used = queued.saturating_sub(*added);
            return Err(Exceeded::Queued { tenant: quota.name, used, added: *added, limit }.into());
        }
        if let Some(limit) = quota.max_stored_bytes.map(convert::to_u64)
            && stored >= limit
        {
            return Err(Exceeded::Stored { tenant: quota.name, used: stored, limit }.into());
        }
    }
    Ok(())
}

/// The tenants that have used up their worker-seconds (max_worker_seconds): none of their jobs is to start. Of the hour
/// in which a window begins, the share that lies in the window counts.
pub async fn over_budget(pool: &PgPool) -> Result<HashMap<TenantId, OverBudget>, DbError> {
    let rows = sqlx::query!(
        r#"with limited as (
             select tenant_id, name, max_worker_seconds, window_seconds, now() - make_interval(secs => window_seconds) as since
             from tenants where max_worker_seconds is not null
           ), used as (
             select l.tenant_id, h.hour, h.worker_seconds as seconds from limited l
             join usage_hours h on h.tenant_id = l.tenant_id and h.hour > l.since - interval '1 hour'
             union all
             select l.tenant_id, u.hour, u.seconds from limited l join places_uncounted_hours u on u.tenant_id = l.tenant_id
           ), sums as (
             select l.tenant_id, coalesce(sum(u.seconds * greatest(0, least(1,
                      extract(epoch from u.hour + interval '1 hour' - l.since)::float8 / 3600))), 0) as seconds
             from limited l left join used u on u.tenant_id = l.tenant_id group by l.tenant_id
           )
           select l.tenant_id, l.name, s.seconds as "used!", l.max_worker_seconds as "limit!", l.window_seconds
           from limited l join sums s on s.tenant_id = l.tenant_id where s.seconds >= l.max_worker_seconds"#
    )
    .fetch_all(pool)
    .await?;
    let over = rows.into_iter().map(|row| {
        let over = OverBudget {
            tenant: row.name,
            used: row.used,
            limit: convert::to_u64(row.limit),
            window: Duration::from_secs(convert::to_u64(row.window_seconds)),
        };
        (TenantId(row.tenant_id), over)
    });
    Ok(over.collect())
}

impl fmt::Display for OverBudget {
    /// For a job that waits. What was used is told in steps of a hundredth of the limit: this is kept with every job, and
    /// would change every second.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tenant, used, limit, window } = self;
        let step = (*limit as f64 / 100.0).max(1.0);
        let used = (used / step).floor() * step;
        write!(
            f,
            "waits for its tenant's quota: tenant {tenant} has used {used:.0} worker-seconds in {}, and may use {limit} \
             (max_worker_seconds)",
            words(*window)
        )
    }
}

/// A window in its largest whole unit.
fn words(window: Duration) -> String {
    let seconds = window.as_secs();
    for (unit, name) in [(86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")] {
        if seconds >= unit && seconds.is_multiple_of(unit) {
            let count = seconds / unit;
            return format!("{count} {name}{}", if count == 1 { "" } else { "s" });
        }
    }
    "no time".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_waits_is_told_which_quota_is_used_up() {
        let over = |seconds| OverBudget {
            tenant: "games".into(),
            used: 4000.4,
            limit: 3600,
            window: Duration::from_secs(seconds),
        };
        assert_eq!(
            over(7 * 86_400).to_string(),
            "waits for its tenant's quota: tenant games has used 3996 worker-seconds in 7 days, and may use 3600 \
             (max_worker_seconds)"
        );
        let words = [3600, 90 * 60, 86_401].map(|seconds| words(Duration::from_secs(seconds)));
        assert_eq!(words, ["1 hour", "90 minutes", "86401 seconds"]);
    }
}
