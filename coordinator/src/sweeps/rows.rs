//! Every statement that writes about sweeps.

use lorafleet_proto::v1 as pb;
use lorafleet_spec::sweep::{Rungs, Sweep};
use sqlx::{PgConnection, PgPool, types::Json};
use uuid::Uuid;

use super::halving::{Entry, Rule, Score, Verdicts};
use crate::{
    convert,
    db::{DbError, text},
    ids::{JobId, SweepId},
    queue::{self, NewJob},
    quota::AdmitError,
};

/// Longest reason that is kept, in bytes.
const MAX_ENDING: usize = 1024;

/// What CreateSweep stores.
#[derive(Clone, Debug)]
pub struct NewSweep {
    /// What the children have in common, as it was sent.
    pub spec: pb::JobSpec,
    /// What differs, as it was sent.
    pub sweep: pb::SweepSpec,
    /// The client's key of idempotence.
    pub request_id: Option<Uuid>,
    /// The children, valid.
    pub expanded: Sweep,
}

/// A sweep that was sent before with the same request_id, and what was sent.
pub type Before = (SweepId, pb::JobSpec, pb::SweepSpec);

/// What became of a [`NewSweep`].
#[derive(Clone, Debug)]
pub enum Created {
    /// It was stored.
    New(SweepId),
    /// Its request_id was used before.
    Before(Box<Before>),
}

/// Why a sweep could not be cancelled.
#[derive(Debug, thiserror::Error)]
pub enum CancelSweepError {
    /// There is no such sweep.
    #[error("there is no such sweep")]
    NotFound,
    /// All of its children have ended.
    #[error("all children of the sweep have ended")]
    Ended,
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// An end of a child that was decided and not carried out.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    pub sweep: SweepId,
    pub rung: i32,
    pub child: i32,
    pub job: JobId,
    pub message: String,
}

/// A sweep that the leader looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub sweep: SweepId,
    /// Its user cancelled it.
    pub cancelled: bool,
    /// A child has not ended.
    pub live: bool,
    /// A child was evaluated at a rung, and was not judged.
    pub due: bool,
    /// A decision was not carried out.
    pub unsettled: bool,
}

/// Stores a sweep and its children, in one transaction; or finds the one that the same request_id made before.
pub async fn create(pool: &PgPool, new: &NewSweep) -> Result<Created, AdmitError> {
    match (insert(pool, new).await, new.request_id) {
        (Err(AdmitError::Db(error)), Some(request_id))
            if error.unique_violation() == Some("sweeps_request_id_key") =>
        {
            let before = by_request_id(pool, request_id).await?;
            before.map(|before| Created::Before(Box::new(before))).ok_or(AdmitError::Db(error))
        }
        (other, _) => other.map(Created::New),
    }
}

async fn insert(pool: &PgPool, new: &NewSweep) -> Result<SweepId, AdmitError> {
    let sweep = SweepId::new();
    let rungs = new.expanded.rungs;
    let mut tx = pool.begin().await?;
    sqlx::query!(
        "insert into sweeps (sweep_id, request_id, spec, sweep, children, rung_steps, keep, min_children)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
        sweep.0,
        new.request_id,
        Json(&new.spec) as _,
        Json(&new.sweep) as _,
        i32::try_from(new.expanded.children.len()).unwrap_or(i32::MAX),
        rungs.map_or(0, |rungs: Rungs| convert::to_i64(rungs.steps)),
        rungs.map_or(1.0, |rungs| rungs.keep),
        rungs.map_or(1, |rungs| convert::to_i32(rungs.min_children)),
    )
    .execute(&mut *tx)
    .await?;
    insert_children(&mut tx, sweep, &new.expanded).await?;
    tx.commit().await?;
    Ok(sweep)
}

async fn insert_children(tx: &mut PgConnection, sweep: SweepId, expanded: &Sweep) -> Result<(), AdmitError> {
    let children = &expanded.children;
    let news: Vec<NewJob> =
        children.iter().map(|child| NewJob { spec: child.spec.clone(), request_id: None }).collect();
    let named = news.iter().zip(children).map(|(new, child)| {
        let (name, sweep, what) = (&new.spec.display_name, sweep.name(), child.describe());
        (JobId::new(), new, format!("job {name} was submitted by {sweep}: {what}"))
    });
    let named: Vec<(JobId, &NewJob, String)> = named.collect();
    queue::insert_all(tx, &named).await?;
    let jobs: Vec<Uuid> = named.iter().map(|(job, ..)| job.0).collect();
    let places: Vec<i32> = children.iter().map(|child| convert::to_i32(child.index)).collect();
    let settings: Vec<_> = children.iter().map(|child| Json(child.settings.clone())).collect();
    sqlx::query!(
        "update jobs set sweep_id = $1, sweep_child = c.child, sweep_settings = c.settings
         from unnest($2::uuid[], $3::int[], $4::jsonb[]) c(job, child, settings) where jobs.job_id = c.job",
        sweep.0,
        &jobs,
        &places,
        &settings as _,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The sweep that a request_id made, and what was sent.
pub async fn by_request_id(pool: &PgPool, request: Uuid) -> Result<Option<Before>, DbError> {
    let row = sqlx::query!(
        r#"select sweep_id, spec as "spec: Json<pb::JobSpec>", sweep as "sweep: Json<pb::SweepSpec>"
           from sweeps where request_id = $1"#,
        request
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| (SweepId(row.sweep_id), row.spec.0, row.sweep.0)))
}

/// Notes that a sweep's user wants no more of it. Its children are still to be ended.
pub async fn cancel(pool: &PgPool, sweep: SweepId) -> Result<(), CancelSweepError> {
    let row = sqlx::query_scalar!(
        r#"update sweeps set cancelled = cancelled or exists
             (select 1 from jobs j where j.sweep_id = sweeps.sweep_id and j.end_time is null)
           where sweep_id = $1
           returning exists (select 1 from jobs j where j.sweep_id = sweeps.sweep_id and j.end_time is null) as "live!""#,
        sweep.0,
    )
    .fetch_optional(pool)
    .await
    .map_err(DbError::from)?;
    match row {
        None => Err(CancelSweepError::NotFound),
        Some(false) => Err(CancelSweepError::Ended),
        Some(true) => Ok(()),
    }
}

/// The jobs of a sweep that have not ended.
pub async fn live_children(pool: &PgPool, sweep: SweepId) -> Result<Vec<JobId>, DbError> {
    let jobs = sqlx::query_scalar!(
        "select job_id from jobs where sweep_id = $1 and end_time is null order by sweep_child",
        sweep.0
    );
    Ok(jobs.fetch_all(pool).await?.into_iter().map(JobId).collect())
}

/// Sweeps with something to do: a child to judge, an end to carry out, or nothing left.
pub(super) async fn open(pool: &PgPool) -> Result<Vec<Open>, DbError> {
    let rows = sqlx::query!(
        r#"select s.sweep_id, s.cancelled,
             exists (select 1 from jobs j where j.sweep_id = s.sweep_id and j.end_time is null) as "live!",
             s.rung_steps > 0 and exists (
               select 1 from jobs j join metric_points p on p.job_id = j.job_id
               where j.sweep_id = s.sweep_id and j.step >= s.rung_steps
                 and p.eval_loss is not null and p.step > 0 and p.step % s.rung_steps = 0
                 and not exists (select 1 from sweep_scores c where c.sweep_id = s.sweep_id and c.child = j.sweep_child
                                 and (c.rung = p.step / s.rung_steps or c.ending is not null))
             ) as "due!",
             exists (select 1 from sweep_scores c
                     where c.sweep_id = s.sweep_id and c.ending is not null and not c.settled) as "unsettled!"
           from sweeps s where s.end_time is null order by s.number"#
    )
    .fetch_all(pool)
    .await?;
    let open = rows.into_iter().map(|row| Open {
        sweep: SweepId(row.sweep_id),
        cancelled: row.cancelled,
        live: row.live,
        due: row.due,
        unsettled: row.unsettled,
    });
    Ok(open.collect())
}

/// Locks a sweep; its rule, and the steps from one rung to the next.
pub(super) async fn lock(tx: &mut PgConnection, sweep: SweepId) -> Result<Option<(Rule, i64)>, DbError> {
    let row = sqlx::query!(
        "select rung_steps, keep, min_children from sweeps where sweep_id = $1 for no key update",
        sweep.0
    )
    .fetch_optional(tx)
    .await?;
    let rule = |keep, min| Rule { keep, min_children: convert::to_u32(min) };
    Ok(row.map(|row| (rule(row.keep, row.min_children), row.rung_steps)))
}

/// What is written down about a sweep's rungs.
pub(super) async fn scores(tx: &mut PgConnection, sweep: SweepId) -> Result<Vec<Score>, DbError> {
    let rows = sqlx::query!(
        r#"select rung, child, loss, beaten, ending is not null as "ended!" from sweep_scores where sweep_id = $1"#,
        sweep.0
    )
    .fetch_all(tx)
    .await?;
    let score = rows.into_iter().map(|row| Score {
        entry: Entry { child: convert::to_u32(row.child), rung: convert::to_u32(row.rung), loss: row.loss },
        beaten: row.beaten,
        ended: row.ended,
    });
    Ok(score.collect())
}

/// Evaluations at rungs that are not written down.
pub(super) async fn entries(
    tx: &mut PgConnection,
    sweep: SweepId,
    rung_steps: i64,
) -> Result<Vec<Entry>, DbError> {
    let rows = sqlx::query!(
        r#"select j.sweep_child as "child!", (p.step / $2)::int as "rung!", p.eval_loss as "loss!"
           from jobs j join metric_points p on p.job_id = j.job_id
           where j.sweep_id = $1 and p.eval_loss is not null and p.step > 0 and p.step % $2 = 0
             and not exists (select 1 from sweep_scores c
                             where c.sweep_id = $1 and c.child = j.sweep_child and c.rung = p.step / $2)"#,
        sweep.0,
        rung_steps,
    )
    .fetch_all(tx)
    .await?;
    let entry = rows.into_iter().map(|row| Entry {
        child: convert::to_u32(row.child),
        rung: convert::to_u32(row.rung),
        loss: row.loss,
    });
    Ok(entry.collect())
}

/// Writes verdicts down; `ending` says why a child is ended.
pub(super) async fn write(
    tx: &mut PgConnection,
    sweep: SweepId,
    verdicts: &Verdicts,
    ending: impl Fn(&super::halving::Beaten) -> String,
) -> Result<(), DbError> {
    let columns = |entries: &mut dyn Iterator<Item = Entry>| -> (Vec<i32>, Vec<i32>, Vec<f64>) {
        let mut columns = (Vec::new(), Vec::new(), Vec::new());
        for entry in entries {
            columns.0.push(convert::to_i32(entry.rung));
            columns.1.push(convert::to_i32(entry.child));
            columns.2.push(entry.loss);
        }
        columns
    };
    let (rungs, children, losses) = columns(&mut verdicts.entered.iter().copied());
    sqlx::query!(
        "insert into sweep_scores (sweep_id, rung, child, loss, beaten)
         select $1, e.rung, e.child, e.loss, false from unnest($2::int[], $3::int[], $4::float8[]) e(rung, child, loss)",
        sweep.0,
        &rungs,
        &children,
        &losses,
    )
    .execute(&mut *tx)
    .await?;
    let (rungs, children, _) = columns(&mut verdicts.beaten.iter().map(|beaten| beaten.entry));
    let endings: Vec<Option<String>> =
        verdicts.beaten.iter().map(|beaten| beaten.ends.then(|| text(&ending(beaten), MAX_ENDING))).collect();
    sqlx::query!(
        "update sweep_scores s set beaten = true, ending = b.ending
         from unnest($2::int[], $3::int[], $4::text[]) b(rung, child, ending)
         where s.sweep_id = $1 and s.rung = b.rung and s.child = b.child",
        sweep.0,
        &rungs,
        &children,
        &endings as &[Option<String>],
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Ends that were decided and not carried out.
pub(super) async fn endings(pool: &PgPool, sweep: SweepId) -> Result<Vec<Ending>, DbError> {
    let rows = sqlx::query!(
        r#"select c.rung, c.child, j.job_id as "job_id?", c.ending as "ending!"
           from sweep_scores c left join jobs j on j.sweep_id = c.sweep_id and j.sweep_child = c.child
           where c.sweep_id = $1 and c.ending is not null and not c.settled order by c.rung, c.child"#,
        sweep.0
    )
    .fetch_all(pool)
    .await?;
    let ending = rows.into_iter().map(|row| Ending {
        sweep,
        rung: row.rung,
        child: row.child,
        // A job that is gone is found to be gone by whoever ends it.
        job: JobId(row.job_id.unwrap_or_default()),
        message: row.ending,
    });
    Ok(ending.collect())
}

/// Notes that an end was carried out, or that the child had ended by itself.
pub(super) async fn settle(pool: &PgPool, ending: &Ending, ended: bool) -> Result<(), DbError> {
    sqlx::query!(
        "update sweep_scores set settled = true, ending = case when $4 then ending end
         where sweep_id = $1 and rung = $2 and child = $3",
        ending.sweep.0,
        ending.rung,
        ending.child,
        ended,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Closes a sweep of which no child is live.
pub(super) async fn close(pool: &PgPool, sweep: SweepId) -> Result<(), DbError> {
    sqlx::query!(
        "update sweeps s set end_time = now() where s.sweep_id = $1 and s.end_time is null
           and not exists (select 1 from jobs j where j.sweep_id = s.sweep_id and j.end_time is null)",
        sweep.0
    )
    .execute(pool)
    .await?;
    Ok(())
}
