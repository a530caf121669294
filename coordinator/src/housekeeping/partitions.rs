//! Partitions of events and points: one a week, made ahead, dropped whole.

use std::time::Duration;

use super::Desk;
use crate::{
    convert,
    db::{DbError, within},
};

/// Partitions are there for this week and so many more.
const AHEAD: i32 = 2;

/// Makes the partitions of this week and of the next ones. Gives how many were made.
pub(super) async fn make(desk: Desk<'_>) -> Result<u64, DbError> {
    let mut made = 0;
    for table in ["job_events", "metric_points"] {
        for week in 0..=AHEAD {
            made += u64::from(within(make_one(desk, table, week)).await?);
        }
    }
    Ok(made)
}

async fn make_one(desk: Desk<'_>, table: &str, week: i32) -> Result<bool, DbError> {
    let Some(mut tx) = desk.begin().await? else { return Ok(false) };
    let made = sqlx::query_scalar!(
        r#"select make_job_partition($1, now() + make_interval(weeks => $2)) as "made!""#,
        table,
        week,
    )
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(made)
}

/// Drops the partitions of a table whose jobs have all ended at least `keep` ago. Gives how many.
pub(super) async fn drop_old(desk: Desk<'_>, table: &str, keep: Duration) -> Result<u64, DbError> {
    let old = sqlx::query_scalar!(
        r#"select name as "name!" from job_partitions
           where parent = $1 and end_id <= first_job_id(now() - make_interval(secs => $2)) order by end_id"#,
        table,
        keep.as_secs_f64(),
    );
    let mut dropped = 0;
    for name in within(async { Ok::<_, DbError>(old.fetch_all(desk.pool).await?) }).await? {
        dropped += u64::from(within(drop_one(desk, &name, Some(keep))).await?);
    }
    Ok(dropped)
}

/// Drops the oldest partitions of a table that has more than `most` rows, until it has not; but none with a live job,
/// nor that of this week. Gives how many.
pub(super) async fn drop_beyond(desk: Desk<'_>, table: &str, most: Option<u64>) -> Result<u64, DbError> {
    let Some(most) = most else { return Ok(0) };
    let all = sqlx::query!(
        r#"select name as "name!", rows as "rows!", end_id <= first_job_id(now()) as "past!"
           from job_partitions where parent = $1 order by end_id"#,
        table,
    );
    let all = within(async { Ok::<_, DbError>(all.fetch_all(desk.pool).await?) }).await?;
    let mut left: u64 = all.iter().map(|partition| convert::to_u64(partition.rows)).sum();
    let mut dropped = 0;
    for partition in all.iter().filter(|partition| partition.past && partition.rows > 0) {
        if left <= most {
            break;
        }
        if within(drop_one(desk, &partition.name, None)).await? {
            left = left.saturating_sub(convert::to_u64(partition.rows));
            dropped += 1;
        }
    }
    Ok(dropped)
}

/// `None`: jobs need only have ended.
async fn drop_one(desk: Desk<'_>, name: &str, keep: Option<Duration>) -> Result<bool, DbError> {
    let Some(mut tx) = desk.begin().await? else { return Ok(false) };
    let dropped = sqlx::query_scalar!(
        r#"select drop_job_partition($1, coalesce(now() - make_interval(secs => $2), 'infinity')) as "dropped!""#,
        name,
        keep.map(|keep| keep.as_secs_f64()) as Option<f64>,
    )
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(dropped)
}
