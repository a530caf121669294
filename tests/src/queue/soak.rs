//! A long run under load: whether dead rows and write-ahead log a job stay flat.

use std::time::Duration;

use anyhow::Result;
use lorafleet_postgres::Postgres;
use serde_json::{Value, json};
use sqlx::Row as _;
use tokio::time::Instant;

use super::{noop::Workers, rig::Rig, throughput::submit_all};

/// Jobs between two looks at the clock.
const BATCH: usize = 500;

/// Submits and finishes jobs for `time`; one line of figures every `every`.
///
/// # Errors
/// When a job is refused or does not end.
pub async fn soak(
    postgres: &Postgres,
    time: Duration,
    every: Duration,
    say: &mut dyn FnMut(&Value),
) -> Result<Vec<Value>> {
    let rig = Rig::start(postgres, &[]).await?;
    let fleet = Workers::join(&rig, 64, Duration::from_secs(2)).await?;
    let mut connection = rig.sql().await?;
    let start = Instant::now();
    let (mut lines, mut done) = (Vec::new(), 0);
    let (mut marked, mut marked_jobs, mut marked_wal) = (start, 0, wal(&mut connection).await?);
    while start.elapsed() < time {
        submit_all(&rig, BATCH, 8).await?;
        done += BATCH;
        fleet.tally.until_finished(done).await?;
        if marked.elapsed() < every && start.elapsed() < time {
            continue;
        }
        let (now, written) = (Instant::now(), wal(&mut connection).await?);
        let jobs = (done - marked_jobs) as f64;
        let line = json!({
            "minutes": start.elapsed().as_secs_f64() / 60.0,
            "jobs": done,
            "jobs_per_s": jobs / (now - marked).as_secs_f64(),
            "wal_bytes_per_job": (written - marked_wal) / jobs,
            "dead_tuples": dead(&mut connection).await?,
        });
        say(&line);
        lines.push(line);
        (marked, marked_jobs, marked_wal) = (now, done, written);
    }
    Ok(lines)
}

async fn wal(connection: &mut sqlx::PgConnection) -> Result<f64> {
    let bytes = sqlx::query_scalar("select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8");
    Ok(bytes.fetch_one(connection).await?)
}

/// Dead rows by table, as far as the server has counted them.
async fn dead(connection: &mut sqlx::PgConnection) -> Result<Value> {
    let rows = sqlx::query(
        "select relname::text, n_dead_tup from pg_stat_user_tables where n_dead_tup > 0 order by 2 desc",
    );
    let rows = rows.fetch_all(connection).await?;
    let pair = |row: sqlx::postgres::PgRow| Ok((row.try_get(0)?, json!(row.try_get::<i64, _>(1)?)));
    Ok(Value::Object(rows.into_iter().map(pair).collect::<sqlx::Result<_>>()?))
}
