//! What a worker's messages do: each becomes one guarded write, and its acknowledgement.

use std::time::Duration;

use lorafleet_proto::v1 as pb;
use pb::{coordinator_message::Message as Down, worker_message::Message as Up};
use sqlx::PgPool;
use tracing::{debug, info};

use crate::{
    db::{DbError, within},
    dispatch, fleet,
    gang::{self, Answer, Claim, Conductor, Ended, Fenced, Loaded},
    hub::{Hub, Seat},
    ids::{Fence, JobId, NameError, PlaceNo, RunId, WorkerId},
    job::AttemptState,
    metrics, points, queue,
};

/// How long a write is tried again while the database is away, before the stream is closed. The worker repeats what
/// was not acknowledged on its next stream.
const PATIENCE: Duration = Duration::from_secs(30);
/// Jobs that one heartbeat may list.
const MAX_RUNNING: usize = 1024;
/// Suspicions that one parting may name.
const MAX_SUSPICIONS: usize = 4096;
/// Longest key of an event, in bytes.
const MAX_KEY: usize = 256;

/// Why a stream cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// The worker breaks the protocol.
    #[error("{0}")]
    Invalid(String),
    /// The database stayed away.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<NameError> for IntakeError {
    fn from(error: NameError) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// The receiving half of one worker's stream.
#[derive(Debug)]
pub struct Intake<'a> {
    /// The database.
    pub pool: &'a PgPool,
    /// Who is woken.
    pub hub: &'a Hub,
    /// What moves gangs on.
    pub conductor: &'a Conductor,
    /// The stream's place there.
    pub seat: &'a Seat,
    /// The worker.
    pub worker: WorkerId,
    /// What the last heartbeat said.
    pub draining: bool,
}

impl Intake<'_> {
    /// Handles one message; tries again while the database is away, up to a limit.
    pub async fn handle(&mut self, message: &Up) -> Result<Vec<Down>, IntakeError> {
        let start = tokio::time::Instant::now();
        let mut pause = Duration::from_millis(100);
        loop {
            match within(self.handle_once(message)).await {
                Err(IntakeError::Db(error)) if error.is_transient() && start.elapsed() < PATIENCE => {
                    debug!(worker = %self.worker, %error, retry_in = ?pause, "report not stored yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                other => return other,
            }
        }
    }

    async fn handle_once(&mut self, message: &Up) -> Result<Vec<Down>, IntakeError> {
        match message {
            Up::Heartbeat(heartbeat) => self.heartbeat(heartbeat).await,
            Up::Ready(ready) => self.ready(ready).await,
            Up::Progress(progress) => self.progress(progress).await,
            Up::CheckpointWritten(written) => self.checkpoint(written).await,
            Up::ReportEvent(report) => self.event(report).await,
            Up::Parted(parted) => self.parted(parted).await,
            Up::Finished(finished) => self.finished(finished).await,
        }
    }

    async fn heartbeat(&mut self, heartbeat: &pb::Heartbeat) -> Result<Vec<Down>, IntakeError> {
        if heartbeat.running.len() > MAX_RUNNING {
            return Err(IntakeError::Invalid(format!("a heartbeat lists more than {MAX_RUNNING} jobs")));
        }
        let running = heartbeat.running.iter().map(|running| {
            let (job, fence) = named(&running.job, running.fence.as_ref())?;
            Ok((RunId { job, attempt: fence.attempt, place: PlaceNo(running.place) }, fence))
        });
        self.seat.heard(running.collect::<Result<_, IntakeError>>()?);
        if heartbeat.draining != self.draining {
            fleet::set_draining(self.pool, self.worker, heartbeat.draining).await?;
            self.draining = heartbeat.draining;
            self.hub.want_scheduler();
        }
        Ok(Vec::new())
    }

    async fn ready(&self, ready: &pb::Ready) -> Result<Vec<Down>, IntakeError> {
        let (job, fence) = named(&ready.job, ready.fence.as_ref())?;
        let run = RunId { job, attempt: fence.attempt, place: PlaceNo(ready.place) };
        match self.conductor.ready(Loaded { worker: self.worker, run, ready: ready.clone() }).await? {
            Fenced::Stale => self.refuse("ready", run, &fence).await,
            Fenced::Done(()) => {
                self.hub.want_dispatch();
                Ok(Vec::new())
            }
        }
    }

    async fn parted(&self, parted: &pb::Parted) -> Result<Vec<Down>, IntakeError> {
        let (job, fence) = named(&parted.job, parted.fence.as_ref())?;
        if parted.suspicions.len() > MAX_SUSPICIONS {
            return Err(IntakeError::Invalid(format!(
                "a parting names more than {MAX_SUSPICIONS} suspicions"
            )));
        }
        let moment = self.conductor.moment();
        let (worker, run) =
            (self.worker, RunId { job, attempt: fence.attempt, place: PlaceNo(parted.place) });
        match gang::parted(self.pool, moment, worker, job, &fence, parted).await? {
            Fenced::Stale => self.refuse("parted", run, &fence).await,
            Fenced::Done(advance) => {
                debug!(%run, %fence, step = parted.step, polite = parted.polite, parted.message, "member parted");
                self.conductor.follow(job, advance).await?;
                Ok(Vec::new())
            }
        }
    }

    async fn progress(&self, progress: &pb::Progress) -> Result<Vec<Down>, IntakeError> {
        let (job, fence) = named(&progress.job, progress.fence.as_ref())?;
        if progress.points.len() > points::MAX_POINTS {
            return Err(IntakeError::Invalid(format!(
                "a report carries more than {} points",
                points::MAX_POINTS
            )));
        }
        let Some(step) = progress.points.iter().map(|point| point.step).max() else {
            return Ok(Vec::new());
        };
        match points::store(self.pool, self.worker, job, &fence, &progress.points).await? {
            Fenced::Stale => self.refuse("progress", any_place(job, &fence), &fence).await,
            Fenced::Done(news) => {
                metrics::steps(news.steps, news.tokens);
                self.hub.job_changed(job);
                // Every member keeps points until it knows that they are stored, so all are told.
                let ack = Down::ProgressAck(pb::ProgressAck { job: job.name(), step });
                Ok(vec![self.tell_all(job, &fence, ack)])
            }
        }
    }

    async fn checkpoint(&self, written: &pb::CheckpointWritten) -> Result<Vec<Down>, IntakeError> {
        let (job, fence) = named(&written.job, written.fence.as_ref())?;
        let Some(checkpoint) = &written.checkpoint else {
            return Err(IntakeError::Invalid("CheckpointWritten names no checkpoint".to_owned()));
        };
        match gang::checkpoint_written(self.pool, self.worker, job, &fence, checkpoint).await? {
            Fenced::Stale => self.refuse("checkpoint", any_place(job, &fence), &fence).await,
            Fenced::Done(expired) => {
                self.hub.job_changed(job);
                let name = |id: String| format!("{}/checkpoints/{id}", job.name());
                Ok(vec![Down::CheckpointAck(pb::CheckpointAck {
                    job: job.name(),
                    checkpoint: checkpoint.name.clone(),
                    expired: expired.into_iter().map(name).collect(),
                })])
            }
        }
    }

    async fn event(&self, report: &pb::ReportEvent) -> Result<Vec<Down>, IntakeError> {
        let (job, fence) = named(&report.job, report.fence.as_ref())?;
        if report.key.is_empty() || report.key.len() > MAX_KEY || report.key.contains('\0') {
            return Err(IntakeError::Invalid(format!(
                "an event's key must have 1 to {MAX_KEY} bytes, without NUL"
            )));
        }
        match gang::report(self.pool, self.worker, job, &fence, report).await? {
            Fenced::Stale => self.refuse("event", any_place(job, &fence), &fence).await,
            Fenced::Done(()) => {
                self.hub.job_changed(job);
                // As with points: every member keeps it until it knows that it is stored.
                let ack = Down::EventAck(pb::EventAck {
                    job: job.name(),
                    fence: Some((&fence).into()),
                    keys: vec![report.key.clone()],
                });
                Ok(vec![self.tell_all(job, &fence, ack)])
            }
        }
    }

    async fn finished(&self, finished: &pb::Finished) -> Result<Vec<Down>, IntakeError> {
        let (job, fence) = named(&finished.job, finished.fence.as_ref())?;
        let Some(outcome) = &finished.outcome else {
            return Err(IntakeError::Invalid("Finished says no outcome".to_owned()));
        };
        let run = RunId { job, attempt: fence.attempt, place: PlaceNo(finished.place) };
        let ended = Ended { worker: self.worker, run, outcome: outcome.clone() };
        let mut done = self.conductor.finished(ended.clone()).await?;
        let is_stopped = matches!(outcome, pb::finished::Outcome::Stopped(_));
        if done == Fenced::Stale && !is_stopped && self.reclaims(run, &fence).await? {
            done = self.conductor.finished(ended).await?;
        }
        self.seat.finished(run);
        let mut answers = match done {
            // That it has stopped is what a stale worker should say.
            Fenced::Stale if is_stopped => Vec::new(),
            Fenced::Stale => self.refuse("finished", run, &fence).await?,
            Fenced::Done(advance) => {
                info!(%run, %fence, worker = %self.worker, "member finished");
                self.conductor.follow(job, advance).await?;
                Vec::new()
            }
        };
        self.hub.job_changed(job);
        self.hub.want_scheduler();
        self.hub.want_dispatch();
        // Stale or not, there is nothing more for the worker to do about it.
        let (job, fence) = (job.name(), Some((&fence).into()));
        answers.push(Down::FinishedAck(pb::FinishedAck { job, fence, place: finished.place }));
        Ok(answers)
    }

    /// Whether a place that the rows did not know is known to them now, by this claim or by one that the dispatcher took up
    /// in the meantime: its last word counts as any member's.
    async fn reclaims(&self, run: RunId, fence: &Fence) -> Result<bool, DbError> {
        let claim = Claim { worker: self.worker, fence: fence.clone(), place: run.place };
        Ok(gang::reclaim(self.pool, run.job, &[claim]).await? != [Answer::Stale])
    }

    /// Tells the other members what the sender gets as its answer.
    fn tell_all(&self, job: JobId, fence: &Fence, message: Down) -> Down {
        let others = pb::CoordinatorMessage { message: Some(message.clone()) };
        self.hub.tell_others(self.worker, job, fence.attempt, &others);
        message
    }

    /// A stale write is counted. One that holds a live place waits for its next generation and says it again under that
    /// fence, so it is only not acknowledged; any other is told to stop, and why.
    async fn refuse(&self, kind: &'static str, run: RunId, fence: &Fence) -> Result<Vec<Down>, IntakeError> {
        metrics::stale_write(kind);
        debug!(%run, %fence, worker = %self.worker, kind, "stale write refused");
        let at = queue::whereabouts(self.pool, self.worker, run).await?;
        if at.is_some_and(|at| at.attempt == AttemptState::Running && at.outcome.is_none()) {
            return Ok(Vec::new());
        }
        if self.seat.lists(run.job, run.attempt) {
            // It may be ahead of a database that forgot: the dispatcher judges what heartbeats list.
            return Ok(Vec::new());
        }
        let place = at.map_or(run.place, |at| at.place);
        Ok(vec![dispatch::stop(RunId { place, ..run }, fence, dispatch::stop_reason_of(at))])
    }
}

/// Some place of the attempt: the message does not say which.
fn any_place(job: JobId, fence: &Fence) -> RunId {
    RunId { job, attempt: fence.attempt, place: PlaceNo(0) }
}

fn named(job: &str, fence: Option<&pb::Fence>) -> Result<(JobId, Fence), IntakeError> {
    let job = JobId::from_name(job)?;
    let fence = fence.ok_or_else(|| IntakeError::Invalid(format!("a message about {job} has no fence")))?;
    Ok((job, fence.clone().into()))
}
