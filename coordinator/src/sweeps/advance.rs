//! What the leader does for sweeps: judges children at rungs, ends those that are beaten, closes what is over.

use sqlx::PgPool;
use tracing::info;

use super::{
    halving::{self, Beaten},
    rows,
};
use crate::{
    db::DbError,
    gang::{self, ChangeError},
    ids::{JobId, SweepId},
    leadership::Leadership,
};

/// Carries all open sweeps on. Gives the jobs that were ended.
///
/// A decision is written down before it is carried out, and is carried out from there: whoever leads next goes on with
/// it, and comes to no other.
pub async fn advance(pool: &PgPool, leadership: &Leadership) -> Result<Vec<JobId>, DbError> {
    let mut ended = Vec::new();
    for open in rows::open(pool).await? {
        if !open.live {
            rows::close(pool, open.sweep).await?;
            continue;
        }
        if open.cancelled {
            ended.extend(cancel_children(pool, open.sweep).await?);
            continue;
        }
        if open.due {
            judge(pool, leadership, open.sweep).await?;
        }
        if open.due || open.unsettled {
            ended.extend(carry_out(pool, open.sweep).await?);
        }
    }
    Ok(ended)
}

/// Ends what is left of a sweep that its user cancelled. Gives the jobs that were ended.
pub async fn cancel_children(pool: &PgPool, sweep: SweepId) -> Result<Vec<JobId>, DbError> {
    let message = format!("cancelled with {} by its user", sweep.name());
    let mut ended = Vec::new();
    for job in rows::live_children(pool, sweep).await? {
        if end(pool, job, &message).await? {
            ended.push(job);
        }
    }
    Ok(ended)
}

/// Judges the children that reached a rung, and writes the verdicts down.
async fn judge(pool: &PgPool, leadership: &Leadership, sweep: SweepId) -> Result<(), DbError> {
    let mut tx = pool.begin().await?;
    if !leadership.holds(&mut tx).await? {
        return Ok(());
    }
    let Some((rule, rung_steps)) = rows::lock(&mut tx, sweep).await? else { return Ok(()) };
    let written = rows::scores(&mut tx, sweep).await?;
    let new = rows::entries(&mut tx, sweep, rung_steps).await?;
    let verdicts = halving::judge(&written, &new, rule);
    let why = |beaten: &Beaten| why(sweep, rung_steps, beaten);
    rows::write(&mut tx, sweep, &verdicts, why).await?;
    tx.commit().await?;
    Ok(())
}

/// Ends the children that were beaten.
async fn carry_out(pool: &PgPool, sweep: SweepId) -> Result<Vec<JobId>, DbError> {
    let mut jobs = Vec::new();
    for ending in rows::endings(pool, sweep).await? {
        let ended = end(pool, ending.job, &ending.message).await?;
        rows::settle(pool, &ending, ended).await?;
        if ended {
            info!(job = %ending.job, %sweep, rung = ending.rung, "a sweep ended a child");
            jobs.push(ending.job);
        }
    }
    Ok(jobs)
}

/// Ends a job; false when it had ended by itself, or is gone.
async fn end(pool: &PgPool, job: JobId, message: &str) -> Result<bool, DbError> {
    match gang::cancel_because(pool, job, message).await {
        Ok(()) => Ok(true),
        Err(ChangeError::Illegal(_) | ChangeError::NotFound) => Ok(false),
        Err(ChangeError::Db(error)) => Err(error),
    }
}

fn why(sweep: SweepId, rung_steps: i64, beaten: &Beaten) -> String {
    let step = rung_steps.saturating_mul(i64::from(beaten.entry.rung));
    let Beaten { entry, rank, of, left, best, .. } = beaten;
    format!(
        "ended by {} at step {step}: its evaluation loss {:.5} is number {rank} of {of}, of which {left} go on; the best \
         is {best:.5}",
        sweep.name(),
        entry.loss,
    )
}
