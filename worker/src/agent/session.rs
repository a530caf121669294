//! One stream to the coordinator, from its first heartbeat until it breaks.

use std::time::{Duration, Instant};

use lorafleet_proto::v1 as pb;
use lorafleet_store::Store;
use pb::{coordinator_message::Message as Down, worker_message::Message as Up};
use tokio::{
    sync::mpsc::{self, Sender},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, info};

use super::{Agent, AgentError, CALL, Parted, RunId, Terms, describe, tidy};

/// Messages that wait for the network.
const QUEUE: usize = 64;
/// What was not acknowledged for this long is sent again on the same stream.
const OVERDUE: Duration = Duration::from_secs(10);
/// How often the run and the drain are looked at, whatever else happens.
const LOOK: Duration = Duration::from_millis(250);
/// The coordinator's time to read the last messages of a worker that leaves.
const GOOD_BYE: Duration = Duration::from_secs(3);

impl Agent {
    /// Connects, and serves the stream until it ends.
    pub(super) async fn session(&mut self, terms: &Terms) -> Result<Parted, AgentError> {
        let (out, queue) = mpsc::channel(QUEUE);
        let line = Line { worker_id: &terms.worker_id, out };
        // The first message of every stream; the queue is empty.
        line.send(Up::Heartbeat(self.heartbeat()));
        let attached = timeout(CALL, self.client.attach(ReceiverStream::new(queue))).await;
        let mut inbound = match attached {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Ok(Parted::Disconnected(describe(&status))),
            Err(_) => return Ok(Parted::Disconnected(format!("no answer within {} s", CALL.as_secs()))),
        };
        self.mailbox.lock().resend();
        self.state.set_connected(true);
        self.slot.set_connected(true);
        info!("connected to the coordinator");
        let mut beat = interval(terms.heartbeat);
        let (mut overdue, mut look) = (interval(OVERDUE), interval(LOOK));
        for ticker in [&mut beat, &mut overdue, &mut look] {
            ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticker.reset();
        }
        let mailbox = self.mailbox.clone();
        let drain = self.drain.clone();
        loop {
            self.slot.reap(Some(&terms.store));
            let was_draining = self.drained_at.is_some();
            if self.drained()? {
                line.send(Up::Heartbeat(self.heartbeat()));
                line.close(inbound).await;
                return Ok(Parted::Drained);
            }
            if !was_draining && self.drained_at.is_some() {
                line.send(Up::Heartbeat(self.heartbeat()));
            }
            while line.has_room() {
                let Some(message) = mailbox.lock().next(Instant::now()) else { break };
                line.send(message);
            }
            tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(message)) => {
                        if let Some(parted) = self.take(message, &terms.store)? {
                            return Ok(parted);
                        }
                    }
                    Ok(None) => return Ok(Parted::Disconnected("the coordinator closed the stream".into())),
                    Err(status) => return Ok(Parted::Disconnected(describe(&status))),
                },
                _ = beat.tick() => line.send(Up::Heartbeat(self.heartbeat())),
                _ = overdue.tick() => mailbox.lock().resend(),
                _ = look.tick() => {}
                () = mailbox.news.notified() => {}
                () = drain.cancelled(), if self.drained_at.is_none() => {}
            }
        }
    }

    fn heartbeat(&self) -> pb::Heartbeat {
        pb::Heartbeat { running: self.slot.running(), draining: self.drain.is_cancelled() }
    }

    /// Does what the coordinator says; the end of the stay when it does not know this worker.
    fn take(&mut self, message: pb::CoordinatorMessage, store: &Store) -> Result<Option<Parted>, AgentError> {
        let Some(message) = message.message else { return Ok(None) };
        match message {
            Down::Assign(assign) => self.slot.assign(assign, store),
            Down::Begin(begin) => self.slot.begin(begin),
            Down::Regroup(regroup) => self.slot.regroup(regroup),
            Down::Leave(leave) => self.slot.leave(&leave),
            Down::Stop(stop) => self.slot.stop(stop),
            Down::ProgressAck(ack) => self.mailbox.lock().ack_points(&ack.job, ack.step),
            Down::CheckpointAck(ack) => {
                self.mailbox.lock().ack_checkpoint(&ack.job, &ack.checkpoint);
                tokio::spawn(tidy::tidy(store.clone(), ack.checkpoint, ack.expired));
            }
            Down::EventAck(ack) => {
                let attempt = ack.fence.map_or(0, |fence| fence.attempt);
                self.mailbox.lock().ack_events(&ack.job, attempt, &ack.keys);
            }
            Down::FinishedAck(ack) => {
                let id = RunId::new(&ack.job, ack.fence.as_ref(), ack.place);
                self.mailbox.lock().ack_finished(&id);
            }
            Down::Unknown(unknown) if unknown.superseded => {
                return Err(AgentError::Superseded(self.options.name.clone()));
            }
            Down::Unknown(_) => return Ok(Some(Parted::Unknown)),
        }
        Ok(None)
    }
}

/// The sending half of a stream.
struct Line<'a> {
    worker_id: &'a str,
    out: Sender<pb::WorkerMessage>,
}

impl Line<'_> {
    /// Room for a report; the last places belong to heartbeats.
    fn has_room(&self) -> bool {
        self.out.capacity() > QUEUE / 8
    }

    /// Ends the stream from this side, and waits until the coordinator has read all of it.
    async fn close(self, mut inbound: tonic::Streaming<pb::CoordinatorMessage>) {
        drop(self.out);
        // What it still says, or how it ends the stream, changes nothing any more.
        let rest = async { while let Ok(Some(_)) = inbound.message().await {} };
        drop(timeout(GOOD_BYE, rest).await);
    }

    fn send(&self, message: Up) {
        let message = pb::WorkerMessage { worker_id: self.worker_id.to_owned(), message: Some(message) };
        if self.out.try_send(message).is_err() {
            // The network takes nothing: keep-alive ends such a stream, and everything is sent again.
            debug!("a message found no room");
        }
    }
}
