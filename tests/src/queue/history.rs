//! What a long history costs: the time to an assignment with many finished jobs beside that with none.

use anyhow::Result;
use lorafleet_postgres::Postgres;
use sqlx::Executor as _;

use super::{idle::assignments, rig::Rig};
use crate::quantile::quantile;

/// Rows made by one statement.
const CHUNK: u64 = 250_000;

/// Median seconds to an assignment, with and without history.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Without.
    pub without: f64,
    /// With it.
    pub with: f64,
}

/// Measures on a database of its own: `jobs` jobs, then the same after `history` finished ones were put there.
///
/// # Errors
/// When the disk is full, or a job is not assigned.
pub async fn cost(postgres: &Postgres, history: u64, jobs: usize) -> Result<Cost> {
    let rig = Rig::start(postgres, &[]).await?;
    let without = quantile(&assignments(&rig, 4, jobs).await?, 0.5);
    fill(&rig, history).await?;
    let with = quantile(&assignments(&rig, 4, jobs).await?, 0.5);
    Ok(Cost { without, with })
}

/// Puts finished jobs with their attempts and first events into the database, as narrow as they can be.
///
/// # Errors
/// The database's.
pub async fn fill(rig: &Rig, jobs: u64) -> Result<()> {
    let mut connection = rig.sql().await?;
    let mut left = jobs;
    while left > 0 {
        let some = left.min(CHUNK);
        let done = jobs - left;
        left -= some;
        // An id begins with the job's time, in milliseconds, as that of a job that was submitted.
        let statement = format!(
            "with made as (
               insert into jobs (job_id, spec, workers_min, workers_max, state, create_time, start_time, end_time,
                                 attempt, last_event)
               select (lpad(to_hex((extract(epoch from now() - interval '2 days') * 1000)::bigint + {done} + n), 12, '0')
                       || substr(replace(gen_random_uuid()::text, '-', ''), 13))::uuid,
                      '{{}}', 1, 1, 'SUCCEEDED', now() - interval '2 days', now() - interval '2 days',
                      now() - interval '2 days', 1, 1
               from generate_series(1, {some}) n returning job_id
             ), tried as (
               insert into attempts (job_id, attempt, state, phase, end_time)
               select job_id, 1, 'SUCCEEDED', 'ENDED', now() from made
             ) insert into job_events (job_id, number, kind, message, attempt)
             select job_id, 1, 'created', 'job was submitted', 0 from made"
        );
        connection.execute(sqlx::AssertSqlSafe(statement)).await?;
    }
    connection.execute("analyze").await?;
    Ok(())
}
