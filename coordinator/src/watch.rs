//! The live stream of one job: its row, its history and its points, from a chosen place on, without gap or double.
//!
//! The rows are read again after every hint and at every poll; cursors over dense event numbers and over steps say
//! what was sent. A hint that is lost costs a moment, never an event.

use std::{sync::Arc, time::Duration};

use lorafleet_proto::v1 as pb;
use sqlx::PgPool;
use tokio::sync::{broadcast, mpsc};
use tonic::Status;

use crate::{
    api::error::ApiError,
    convert,
    db::{DbError, within},
    events,
    hub::Hub,
    ids::JobId,
    points, queue,
};

/// Updates that wait for the client to read them.
pub const OUTBOX: usize = 64;
/// Events or points read at once.
const BATCH: u32 = 500;
/// A watcher rides out a database that is away for this long before it tells the client to come again.
const PATIENCE: Duration = Duration::from_secs(30);

type Update = Result<pb::WatchJobResponse, Status>;

/// One client's view of one job.
#[derive(Debug)]
pub struct Watcher {
    pool: PgPool,
    job: JobId,
    outbox: mpsc::Sender<Update>,
    after_event: u64,
    /// -1: not even step 0 was sent.
    after_step: i64,
    sent: Option<pb::Job>,
    poll: Duration,
}

/// The client is gone, or the stream has ended as it should.
struct Over;

impl Watcher {
    /// A view that replays after the request's cursors.
    pub fn new(
        pool: PgPool,
        job: JobId,
        request: &pb::WatchJobRequest,
        outbox: mpsc::Sender<Update>,
        poll: Duration,
    ) -> Self {
        let after_step = if request.after_step == 0 { -1 } else { convert::to_i64(request.after_step) };
        Self { pool, job, outbox, after_event: request.after_event, after_step, sent: None, poll }
    }

    /// Runs until the job has ended and all was sent, or until the client leaves.
    pub async fn run(mut self, hub: Arc<Hub>) {
        let mut changes = hub.changes();
        let mut last_good = tokio::time::Instant::now();
        loop {
            match within::<_, DbError>(self.look()).await {
                Ok(Err(Over)) => return,
                Ok(Ok(())) => last_good = tokio::time::Instant::now(),
                Err(error) if error.is_transient() && last_good.elapsed() < PATIENCE => {}
                Err(error) => {
                    // The client may be gone as well; then there is nobody to tell.
                    let _ = self.outbox.send(Err(ApiError::from(error).into())).await;
                    return;
                }
            }
            tokio::select! {
                () = self.outbox.closed() => return,
                () = changed(&mut changes, self.job) => {}
                () = tokio::time::sleep(self.poll) => {}
            }
        }
    }

    /// Reads the rows and sends what is new. The job's row is read first: what it counts is there to be read after it.
    async fn look(&mut self) -> Result<Result<(), Over>, DbError> {
        let Some(row) = queue::get(&self.pool, self.job).await? else { return Ok(Err(Over)) };
        let terminal = row.state()?.is_terminal();
        let last_event = row.last_event();
        let job = queue::JobRow::messages(&self.pool, vec![row]).await?.pop();
        let Some(job) = job else { return Ok(Err(Over)) };
        if (self.sent.is_none() || (!terminal && self.sent.as_ref() != Some(&job)))
            && self.send(pb::watch_job_response::Update::Job(job.clone())).await.is_err()
        {
            return Ok(Err(Over));
        }
        if self.send_events(last_event).await?.is_err() || self.send_points().await?.is_err() {
            return Ok(Err(Over));
        }
        self.sent = Some(job.clone());
        if terminal {
            // The last message; whether it arrives or the client is gone, the stream is over.
            let _ = self.send(pb::watch_job_response::Update::Job(job)).await;
            return Ok(Err(Over));
        }
        Ok(Ok(()))
    }

    async fn send_events(&mut self, last: u64) -> Result<Result<(), Over>, DbError> {
        while self.after_event < last {
            let batch = events::list(&self.pool, self.job, self.after_event, BATCH).await?;
            if batch.is_empty() {
                break;
            }
            for event in batch {
                let number = event.number;
                if self.send(pb::watch_job_response::Update::Event(event)).await.is_err() {
                    return Ok(Err(Over));
                }
                self.after_event = number;
            }
        }
        Ok(Ok(()))
    }

    async fn send_points(&mut self) -> Result<Result<(), Over>, DbError> {
        loop {
            let batch = points::list(&self.pool, self.job, self.after_step, BATCH).await?;
            let full = batch.len() == BATCH as usize;
            for point in batch {
                let step = convert::to_i64(point.step);
                if self.send(pb::watch_job_response::Update::Point(point)).await.is_err() {
                    return Ok(Err(Over));
                }
                self.after_step = step;
            }
            if !full {
                return Ok(Ok(()));
            }
        }
    }

    async fn send(&self, update: pb::watch_job_response::Update) -> Result<(), Over> {
        let response = pb::WatchJobResponse { update: Some(update) };
        self.outbox.send(Ok(response)).await.map_err(|_| Over)
    }
}

/// Waits for a change of this job. A watcher that fell behind, or a hub that is gone, counts as one.
async fn changed(changes: &mut broadcast::Receiver<JobId>, job: JobId) {
    loop {
        match changes.recv().await {
            Ok(other) if other != job => {}
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            // No more hints; the poll goes on.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}
