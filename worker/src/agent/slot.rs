//! The worker's one slot: the run that it holds, on a thread of its own, and the assignment that waits for it to end.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use lorafleet_proto::v1 as pb;
use lorafleet_store::Store;
use pb::finished::Outcome;
use tracing::{error, info, info_span};

use super::{Mailbox, RunId};
use crate::run::{Backlog, Reporter, RunControl};

/// Members other than index 0 keep their points this long, and send those that index 0 did not get acknowledged: so
/// none is lost with one member.
const HOLD: Duration = Duration::from_secs(5);

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
        let message = |id: &RunId, step| pb::RunningJob {
            job: id.job.clone(),
            fence: Some(id.fence.clone()),
            step,
            place: 0,
        };
        let current = self.current.iter().map(|current| message(&current.id, current.control.step()));
        let mut running: Vec<_> = current.collect();
        running.extend(self.mailbox.lock().ended().map(|id| message(id, 0)));
        running
    }

    /// Takes an assignment. A repeated one starts nothing: what was reported about it is sent again.
    pub fn assign(&mut self, assign: pb::Assign, store: &Store) {
        let id = RunId::new(&assign.job, assign.fence.as_ref());
        if self.mailbox.lock().holds(&id) {
            self.mailbox.put(|outbox| outbox.resend_run(&id));
        } else if self.draining {
            self.decline(&id, Outcome::Released(pb::Released { step: 0 }));
        } else if self.current.is_some() {
            info!(job = assign.job, "assignment waits for the present run to end");
            self.waiting = Some(assign);
        } else {
            self.start(assign, id, store);
        }
    }

    /// All members of the run are ready.
    pub fn begin(&mut self, begin: pb::Begin) {
        let id = RunId::new(&begin.job, begin.fence.as_ref());
        if let Some(current) = self.current.as_ref().filter(|current| current.id == id) {
            self.mailbox.put(|outbox| outbox.begun(&id));
            current.control.begin(begin);
        }
    }

    /// The run is to end. What is not held here has ended, and the coordinator is told so.
    pub fn stop(&mut self, stop: &pb::Stop) {
        let id = RunId::new(&stop.job, stop.fence.as_ref());
        info!(job = stop.job, reason = ?stop.reason(), "told to stop");
        if self.waiting.as_ref().is_some_and(|waiting| RunId::new(&waiting.job, waiting.fence.as_ref()) == id)
        {
            self.waiting = None;
        }
        match &self.current {
            Some(current) if current.id == id => current.control.stop(stop.reason()),
            _ if self.mailbox.lock().holds(&id) => {}
            _ => self.decline(&id, Outcome::Stopped(pb::Stopped {})),
        }
    }

    /// No new work; the present run leaves at its next step boundary.
    pub fn drain(&mut self) {
        self.draining = true;
        if let Some(waiting) = self.waiting.take() {
            let id = RunId::new(&waiting.job, waiting.fence.as_ref());
            self.decline(&id, Outcome::Released(pb::Released { step: 0 }));
        }
        if let Some(current) = &self.current {
            current.control.leave();
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
            self.mailbox.put(|outbox| outbox.finished(&id, outcome));
        }
        if let Some(store) = store
            && let Some(next) = self.waiting.take()
        {
            self.assign(next, store);
        }
    }

    /// Answers for a run that is not held here.
    fn decline(&self, id: &RunId, outcome: Outcome) {
        self.mailbox.put(|outbox| {
            outbox.open(id, Duration::ZERO);
            outbox.finished(id, outcome);
        });
    }

    fn start(&mut self, assign: pb::Assign, id: RunId, store: &Store) {
        let hold = if assign.index == 0 { Duration::ZERO } else { HOLD };
        self.mailbox.put(|outbox| outbox.open(&id, hold));
        let control = Arc::new(RunControl::new(id.fence.clone()));
        let (end, ended) = mpsc::channel();
        let (runner, mailbox, store) = (self.runner.clone(), self.mailbox.clone(), store.clone());
        let (run, line) = (id.clone(), control.clone());
        let work = move || {
            let pb::Fence { attempt, generation, .. } = run.fence;
            let span = info_span!("run", job = %run.job, attempt, generation, index = assign.index);
            let _span = span.enter();
            info!(world_size = assign.world_size, "run begins");
            let reporter = Arc::new(MailReporter { id: run, mailbox: mailbox.clone() });
            let outcome = catch_unwind(AssertUnwindSafe(|| runner.run(&store, assign, line, reporter)));
            let outcome = outcome.unwrap_or_else(|panic| lost(&panicked(&*panic)));
            // The agent lives as long as the process.
            drop(end.send(outcome));
            mailbox.news.notify_one();
        };
        if let Err(error) = thread::Builder::new().name("run".into()).spawn(work) {
            self.decline(&id, lost(&format!("no thread for the run: {error}")));
            return;
        }
        self.current = Some(Current { id, control, ended });
    }
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

impl Reporter for MailReporter {
    fn ready(&self, ready: pb::Ready) {
        self.mailbox.put(|outbox| outbox.ready(&self.id, ready));
    }

    fn point(&self, point: pb::MetricPoint) {
        self.mailbox.put(|outbox| outbox.point(&self.id, point, Instant::now()));
    }

    fn begun(&self, _fence: &pb::Fence, _index: u32) {}

    fn parted(&self, _parted: pb::Parted) {}

    fn event(&self, _key: &str, kind: &str, message: &str) {
        self.mailbox.put(|outbox| outbox.event(&self.id, kind, message));
    }

    fn own_event(&self, kind: &str, message: &str) {
        self.mailbox.put(|outbox| outbox.event(&self.id, kind, message));
    }

    fn unacknowledged(&self) -> Backlog {
        Backlog::default()
    }

    fn take_over(&self, _backlog: Backlog) {}

    fn checkpoint(&self, checkpoint: pb::Checkpoint) {
        self.mailbox.put(|outbox| outbox.checkpoint(&self.id, checkpoint));
    }
}
