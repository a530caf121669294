//! What a worker's messages do: each becomes one guarded write, and its acknowledgement.

use std::time::Duration;

use lorafleet_proto::v1 as pb;
use pb::{coordinator_message::Message as Down, worker_message::Message as Up};
use sqlx::PgPool;
use tracing::{debug, info};

use crate::{
    db::{DbError, within},
    fleet,
    gang::{self, Fenced},
    hub::{Hub, Seat},
    ids::{Fence, JobId, NameError, WorkerId},
    metrics, points, queue,
};

/// How long a write is tried again while the database is away, before the stream is closed. The worker repeats what
/// was not acknowledged on its next stream.
const PATIENCE: Duration = Duration::from_secs(30);
/// Jobs that one heartbeat may list.
const MAX_RUNNING: usize = 1024;

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
            Up::Finished(finished) => self.finished(finished).await,
            Up::Parted(_) => Err(IntakeError::Invalid("gangs do not change yet".to_owned())),
        }
    }

    async fn heartbeat(&mut self, heartbeat: &pb::Heartbeat) -> Result<Vec<Down>, IntakeError> {
        if heartbeat.running.len() > MAX_RUNNING {
            return Err(IntakeError::Invalid(format!("a heartbeat lists more than {MAX_RUNNING} jobs")));
        }
        let running = heartbeat.running.iter().map(|running| named(&running.job, running.fence.as_ref()));
        self.seat.heard(running.collect::<Result<_, _>>()?);
        if heartbeat.draining != self.draining {
            fleet::set_draining(self.pool, self.worker, heartbeat.draining).await?;
            self.draining = heartbeat.draining;
            self.hub.want_scheduler();
        }
        Ok(Vec::new())
    }

    async fn ready(&self, ready: &pb::Ready) -> Result<Vec<Down>, IntakeError> {
        let (job, fence) = named(&ready.job, ready.fence.as_ref())?;
        if !queue::set_ready(self.pool, self.worker, job, &fence, ready).await? {
            return self.refuse("ready", job, &fence).await;
        }
        self.hub.want_dispatch();
        Ok(Vec::new())
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
            Fenced::Stale => self.refuse("progress", job, &fence).await,
            Fenced::Done(news) => {
                metrics::steps(news.steps, news.tokens);
                self.hub.job_changed(job);
                // Every member keeps points until it knows that they are stored, so all are told.
                let ack = Down::ProgressAck(pb::ProgressAck { job: job.name(), step });
                let message = pb::CoordinatorMessage { message: Some(ack.clone()) };
                self.hub.tell_others(self.worker, job, &fence, &message);
                Ok(vec![ack])
            }
        }
    }

    async fn checkpoint(&self, written: &pb::CheckpointWritten) -> Result<Vec<Down>, IntakeError> {
        let (job, fence) = named(&written.job, written.fence.as_ref())?;
        let Some(checkpoint) = &written.checkpoint else {
            return Err(IntakeError::Invalid("CheckpointWritten names no checkpoint".to_owned()));
        };
        match gang::checkpoint_written(self.pool, self.worker, job, &fence, checkpoint).await? {
            Fenced::Stale => self.refuse("checkpoint", job, &fence).await,
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
        match gang::report(self.pool, self.worker, job, &fence, report).await? {
            Fenced::Stale => self.refuse("event", job, &fence).await,
            Fenced::Done(()) => {
                self.hub.job_changed(job);
                Ok(vec![Down::EventAck(pb::EventAck {
                    job: job.name(),
                    fence: Some((&fence).into()),
                    sequence: report.sequence,
                    keys: Vec::new(),
                })])
            }
        }
    }

    async fn finished(&self, finished: &pb::Finished) -> Result<Vec<Down>, IntakeError> {
        let (job, fence) = named(&finished.job, finished.fence.as_ref())?;
        let Some(outcome) = &finished.outcome else {
            return Err(IntakeError::Invalid("Finished says no outcome".to_owned()));
        };
        let done = gang::finished(self.pool, self.worker, job, &fence, outcome).await?;
        self.seat.finished(job, &fence);
        self.hub.job_changed(job);
        self.hub.want_scheduler();
        self.hub.want_dispatch();
        let mut answers = match done {
            // That it has stopped is what a stale worker should say.
            Fenced::Stale if matches!(outcome, pb::finished::Outcome::Stopped(_)) => Vec::new(),
            Fenced::Stale => self.refuse("finished", job, &fence).await?,
            Fenced::Done(()) => {
                info!(%job, %fence, worker = %self.worker, "member finished");
                Vec::new()
            }
        };
        // Stale or not, there is nothing more for the worker to do about it.
        answers.push(Down::FinishedAck(pb::FinishedAck {
            job: job.name(),
            fence: Some((&fence).into()),
            place: 0,
        }));
        Ok(answers)
    }

    /// A stale write: counted, and answered with a stop that says why.
    async fn refuse(&self, kind: &'static str, job: JobId, fence: &Fence) -> Result<Vec<Down>, IntakeError> {
        metrics::stale_write(kind);
        debug!(%job, %fence, worker = %self.worker, kind, "stale write refused");
        let state = queue::attempt_state(self.pool, job, fence).await?;
        let reason = match state {
            Some(crate::job::AttemptState::Cancelled) => pb::StopReason::Cancelled,
            _ => pb::StopReason::Stale,
        };
        let fence = Some(fence.into());
        Ok(vec![Down::Stop(pb::Stop { job: job.name(), fence, reason: reason.into(), place: 0 })])
    }
}

fn named(job: &str, fence: Option<&pb::Fence>) -> Result<(JobId, Fence), IntakeError> {
    let job = JobId::from_name(job)?;
    let fence = fence.ok_or_else(|| IntakeError::Invalid(format!("a message about {job} has no fence")))?;
    Ok((job, fence.clone().into()))
}
