//! The worker's one slot: the run that it holds, on a thread of its own, and the assignment that waits for it to end.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
    time::Instant,
};

use lorafleet_proto::v1 as pb;
use lorafleet_store::Store;
use pb::finished::Outcome;
use tracing::{error, info, info_span};

use super::{Mailbox, Outbox, RunId};
use crate::run::{Backlog, Reporter, RunControl};

/// Runs one attempt to its end; blocks. The seam between the fleet's protocol and training.
pub trait Runner: Send + Sync {
    /// Trains what is assigned.
    fn run(
        &self,
        store: &Store,
        assign: pb::Assign,
        control: Arc<RunControl>,
        reporter: Arc<dyn Reporter>,
    ) -> Outcome;
}

/// The slot.
pub(super) struct Slot {
    runner: Arc<dyn Runner>,
    mailbox: Arc<Mailbox>,
    current: Option<Current>,
    /// Comes next, when the present run is over.
    waiting: Option<pb::Assign>,
    draining: bool,
}

struct Current {
    id: RunId,
    control: Arc<RunControl>,
    ended: mpsc::Receiver<Outcome>,
}

impl Slot {
    pub fn new(runner: Arc<dyn Runner>, mailbox: Arc<Mailbox>) -> Self {
        Self { runner, mailbox, current: None, waiting: None, draining: false }
    }

    /// Nothing runs.
    pub fn is_idle(&self) -> bool {
        self.current.is_none()
    }

    /// What the coordinator should take for running: also a run whose end it has not acknowledged.
    pub fn running(&self) -> Vec<pb::RunningJob> {
        let message = |id: &RunId, fence, step| pb::RunningJob {
            job: id.job.clone(),
            fence: Some(fence),
            step,
            place: id.place,
        };
        let of_run =
            |current: &Current| message(&current.id, current.control.fence(), current.control.step());
        let mut running: Vec<_> = self.current.iter().map(of_run).collect();
        running.extend(self.mailbox.lock().ended().map(|(id, fence)| message(id, fence.clone(), 0)));
        running
    }

    /// Takes an assignment. A repeated one starts nothing: what was reported about it is sent again.
    pub fn assign(&mut self, assign: pb::Assign, store: &Store) {
        let id = id_of(&assign);
        if self.mailbox.lock().holds(&id) {
            self.mailbox.put(|outbox| outbox.resend_run(&id));
        } else if self.draining {
            self.decline(&id, assign.fence, Outcome::Released(pb::Released { step: 0 }));
        } else if self.current.is_some() {
            info!(job = assign.job, place = assign.place, "assignment waits for the present run to end");
            self.waiting = Some(assign);
        } else {
            self.start(assign, id, store);
        }
    }

    /// A generation of the run's attempt opens. One without this place is not ours: a stop follows.
    pub fn begin(&mut self, begin: pb::Begin) {
        let Some(current) = self.of_attempt(&begin.job, begin.fence.as_ref()) else { return };
        if begin.members.iter().any(|member| member.place == current.id.place) {
            let generation = begin.fence.as_ref().map_or(0, |fence| fence.generation);
            self.mailbox.put(|outbox| outbox.opened(&current.id, generation));
            current.control.begin(begin);
        }
    }

    /// A generation is to part at its next step boundary.
    pub fn regroup(&self, regroup: pb::Regroup) {
        if let Some(current) = self.of_attempt(&regroup.job, regroup.fence.as_ref()) {
            current.control.regroup(regroup.fence.unwrap_or_default());
        }
    }

    /// The place is to be given back. One that is not held has ended, and its end is repeated until acknowledged.
    pub fn leave(&mut self, leave: &pb::Leave) {
        let id = RunId { job: leave.job.clone(), attempt: leave.attempt, place: leave.place };
        info!(job = leave.job, place = leave.place, reason = leave.reason, "told to leave");
        if let Some(waiting) = self.waiting.take_if(|waiting| id_of(waiting) == id) {
            self.decline(&id, waiting.fence, Outcome::Released(pb::Released { step: 0 }));
        } else if let Some(current) = self.current.as_ref().filter(|current| current.id == id) {
            current.control.leave();
        }
    }

    /// The run is to end. What is not held here has ended, and the coordinator is told so.
    pub fn stop(&mut self, stop: pb::Stop) {
        let id = RunId::new(&stop.job, stop.fence.as_ref(), stop.place);
        info!(job = stop.job, place = stop.place, reason = ?stop.reason(), "told to stop");
        self.waiting.take_if(|waiting| id_of(waiting) == id);
        match &self.current {
            Some(current) if current.id == id => current.control.stop(stop.reason()),
            _ if self.mailbox.lock().holds(&id) => {}
            _ => self.decline(&id, stop.fence, Outcome::Stopped(pb::Stopped {})),
        }
    }

    /// No new work; the present run leaves at its next step boundary.
    pub fn drain(&mut self) {
        self.draining = true;
        if let Some(waiting) = self.waiting.take() {
            self.decline(&id_of(&waiting), waiting.fence, Outcome::Released(pb::Released { step: 0 }));
        }
        if let Some(current) = &self.current {
            current.control.leave();
        }
    }

    /// Whether there is a line to the coordinator.
    pub fn set_connected(&self, connected: bool) {
        if let Some(current) = &self.current {
            current.control.set_connected(connected);
        }
    }

    /// Notices that the run has ended, and starts the next one if it is known where its files lie.
    pub fn reap(&mut self, store: Option<&Store>) {
        if let Some(current) = &self.current {
            let outcome = match current.ended.try_recv() {
                Ok(outcome) => outcome,
                Err(mpsc::TryRecvError::Empty) => return,
                Err(mpsc::TryRecvError::Disconnected) => lost("the run's thread ended without an outcome"),
            };
            let id = current.id.clone();
            self.current = None;
            self.mailbox.put(|outbox| outbox.finished(&id, outcome, Instant::now()));
        }
        if let Some(store) = store
            && let Some(next) = self.waiting.take()
        {
            self.assign(next, store);
        }
    }

    fn of_attempt(&self, job: &str, fence: Option<&pb::Fence>) -> Option<&Current> {
        let attempt = fence.map_or(0, |fence| fence.attempt);
        self.current.as_ref().filter(|current| current.id.job == job && current.id.attempt == attempt)
    }

    /// Answers for a run that is not held here.
    fn decline(&self, id: &RunId, fence: Option<pb::Fence>, outcome: Outcome) {
        self.mailbox.put(|outbox| {
            outbox.open(id, fence.unwrap_or_default());
            outbox.finished(id, outcome, Instant::now());
        });
    }

    fn start(&mut self, assign: pb::Assign, id: RunId, store: &Store) {
        let fence = assign.fence.clone().unwrap_or_default();
        self.mailbox.put(|outbox| outbox.open(&id, fence.clone()));
        let control = Arc::new(RunControl::new(fence.clone()));
        let (end, ended) = mpsc::channel();
        let (runner, mailbox, store) = (self.runner.clone(), self.mailbox.clone(), store.clone());
        let (run, line) = (id.clone(), control.clone());
        let work = move || {
            let span = info_span!("run", job = %run.job, attempt = run.attempt, place = run.place);
            let _span = span.enter();
            info!("run begins");
            let reporter = Arc::new(MailReporter { id: run, mailbox: mailbox.clone() });
            let outcome = catch_unwind(AssertUnwindSafe(|| runner.run(&store, assign, line, reporter)));
            let outcome = outcome.unwrap_or_else(|panic| lost(&panicked(&*panic)));
            // The agent lives as long as the process.
            drop(end.send(outcome));
            mailbox.news.notify_one();
        };
        if let Err(error) = thread::Builder::new().name("run".into()).spawn(work) {
            self.decline(&id, Some(fence), lost(&format!("no thread for the run: {error}")));
            return;
        }
        self.current = Some(Current { id, control, ended });
    }
}

fn id_of(assign: &pb::Assign) -> RunId {
    RunId::new(&assign.job, assign.fence.as_ref(), assign.place)
}

fn lost(message: &str) -> Outcome {
    error!(message, "run lost");
    Outcome::Lost(pb::Lost { message: message.to_owned(), suspects: Vec::new() })
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    format!("the worker panicked, which is a bug of lorafleet: {text}")
}

/// Puts a run's reports into the agent's outbox.
struct MailReporter {
    id: RunId,
    mailbox: Arc<Mailbox>,
}

impl MailReporter {
    fn put<T>(&self, change: impl FnOnce(&mut Outbox, &RunId, Instant) -> T) -> T {
        self.mailbox.put(|outbox| change(outbox, &self.id, Instant::now()))
    }
}

impl Reporter for MailReporter {
    fn ready(&self, ready: pb::Ready) {
        self.put(|outbox, id, now| outbox.ready(id, ready, now));
    }

    fn begun(&self, fence: &pb::Fence, index: u32) {
        self.put(|outbox, id, _| outbox.begun(id, fence, index));
    }

    fn parted(&self, parted: pb::Parted) {
        self.put(|outbox, id, now| outbox.parted(id, parted, now));
    }

    fn point(&self, point: pb::MetricPoint) {
        self.put(|outbox, id, now| outbox.point(id, point, now));
    }

    fn event(&self, key: &str, kind: &str, message: &str) {
        self.put(|outbox, id, now| outbox.event(id, key, kind, message, now));
    }

    fn own_event(&self, kind: &str, message: &str) {
        self.put(|outbox, id, now| outbox.own_event(id, kind, message, now));
    }

    fn checkpoint(&self, checkpoint: pb::Checkpoint) {
        self.put(|outbox, id, now| outbox.checkpoint(id, checkpoint, now));
    }

    fn unacknowledged(&self) -> Backlog {
        self.put(|outbox, id, _| outbox.unacknowledged(id))
    }

    fn take_over(&self, backlog: Backlog) {
        self.put(|outbox, id, now| outbox.take_over(id, backlog, now));
    }
}
