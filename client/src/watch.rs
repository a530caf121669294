//! A job's live stream that survives the connection it came over: it goes on from the last event and step it saw.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Status, Streaming};

pub use crate::pb::watch_job_response::Update;
use crate::{
    client::{Client, jobs},
    error::ClientError,
    pb,
    retry::{Backoff, is_transient, jitter},
};

/// A coordinator that is away for longer than this ends the watch; the job itself goes on.
const PATIENCE: Duration = Duration::from_secs(300);
/// Nobody waits longer for a stream to open.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);

/// Whether a job in this state has ended.
pub fn is_terminal(state: pb::JobState) -> bool {
    matches!(state, pb::JobState::Succeeded | pb::JobState::Failed | pb::JobState::Cancelled)
}

/// The updates of one job, each event and point once, in order, until it has ended.
pub struct Watch {
    client: Client,
    name: String,
    stream: Option<Streaming<pb::WatchJobResponse>>,
    /// The last event seen; 0: none.
    event: u64,
    /// The last step seen; none before the first point (step 0 is one).
    step: Option<u64>,
    /// The job was seen in a terminal state: the end of the stream is the end.
    ended: bool,
    backoff: Backoff,
    /// When the stream last brought something.
    alive: Instant,
}

impl Client {
    /// Follows a job (`jobs/{id}`) from after an event and a step on; zeros: from its beginning.
    pub fn watch(&self, name: &str, after_event: u64, after_step: u64) -> Watch {
        Watch {
            client: self.clone(),
            name: name.to_owned(),
            stream: None,
            event: after_event,
            step: (after_step > 0).then_some(after_step),
            ended: false,
            backoff: first_backoff(),
            alive: Instant::now(),
        }
    }
}

impl Watch {
    /// The next update; none when the stream of a job that has ended is over. Reconnects when the stream breaks.
    ///
    /// The stream of a job that had ended before begins with that job, too: its history and points follow.
    ///
    /// # Errors
    /// `NotFound`; `Unreachable` when the coordinator has been away for five minutes.
    pub async fn next(&mut self) -> Result<Option<Update>, ClientError> {
        loop {
            match self.receive().await {
                Ok(Some(update)) => {
                    self.alive = Instant::now();
                    self.backoff = first_backoff();
                    if self.is_new(&update) {
                        return Ok(Some(update));
                    }
                }
                Ok(None) if self.ended => return Ok(None),
                // The server ended the stream before the job ended: it is going down.
                Ok(None) => self.pause(&Status::unavailable("the coordinator closed the stream")).await?,
                Err(status) if is_transient(&status) => self.pause(&status).await?,
                Err(status) => return Err(self.client.error(&status)),
            }
        }
    }

    async fn receive(&mut self) -> Result<Option<Update>, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(open(&self.client, &self.name, self.event, self.step.unwrap_or(0)).await?),
        };
        match stream.message().await? {
            Some(message) => message.update.map(Some).ok_or_else(|| Status::internal("an empty update")),
            None => Ok(None),
        }
    }

    /// Notes how far the stream has come; false for what was seen before a reconnect.
    fn is_new(&mut self, update: &Update) -> bool {
        match update {
            Update::Job(job) => {
                self.ended = is_terminal(job.state());
                true
            }
            Update::Event(event) => {
                let new = event.number > self.event;
                self.event = self.event.max(event.number);
                new
            }
            Update::Point(point) => {
                let new = self.step.is_none_or(|step| point.step > step);
                self.step = self.step.max(Some(point.step));
                new
            }
        }
    }

    /// Waits before the next try, or gives up.
    async fn pause(&mut self, status: &Status) -> Result<(), ClientError> {
        self.stream = None;
        if self.alive.elapsed() > PATIENCE {
            return Err(self.client.error(status));
        }
        tracing::debug!(%status, job = self.name, "watch broken off, will be opened again");
        tokio::time::sleep(self.backoff.wait(jitter())).await;
        Ok(())
    }
}

fn first_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(250), Duration::from_secs(5))
}

async fn open(
    client: &Client,
    name: &str,
    after_event: u64,
    after_step: u64,
) -> Result<Streaming<pb::WatchJobResponse>, Status> {
    let request = pb::WatchJobRequest { name: name.to_owned(), after_event, after_step };
    let mut jobs = jobs(client.channel.clone());
    let opened = tokio::time::timeout(OPEN_DEADLINE, jobs.watch_job(request)).await;
    Ok(opened.map_err(|_| Status::unavailable("the coordinator does not answer"))??.into_inner())
}
