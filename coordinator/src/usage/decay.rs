//! What tenants used lately, older use weighing less: the ground of fair shares.

use std::{collections::HashMap, time::Duration};

use sqlx::PgPool;

use crate::{db::DbError, ids::TenantId};

/// Hours this many half-lives old weigh less than a millionth, and are left out.
const HALVINGS: f64 = 20.0;
/// In seconds; times longer ago than some of these are none that Postgres knows.
const LONGEST: f64 = 1e9;

/// Worker-seconds of each tenant, those of a half-life ago counting half, up to this moment. Tenants that used nothing
/// are left out.
pub async fn decayed(pool: &PgPool, half_life: Duration) -> Result<HashMap<TenantId, f64>, DbError> {
    let half_life = half_life.as_secs_f64().clamp(1.0, LONGEST);
    // An hour is as old as its middle; the current one is not old.
    let rows = sqlx::query!(
        r#"with used as (
             select h.tenant_id, h.hour, h.worker_seconds as seconds
             from tenants t join usage_hours h on h.tenant_id = t.tenant_id
               and h.hour > now() - make_interval(secs => $1::float8 * $2::float8)
             union all
             select tenant_id, hour, seconds from places_uncounted_hours
           )
           select tenant_id as "tenant_id!", sum(seconds * power(0.5::float8,
                    greatest(extract(epoch from now() - hour)::float8 - 1800, 0) / $1)) as "used!"
           from used where seconds > 0 group by tenant_id"#,
        half_life,
        HALVINGS,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (TenantId(row.tenant_id), row.used)).collect())
}
