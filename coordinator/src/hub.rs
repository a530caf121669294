//! What this process knows of its own: the streams of connected workers, and who wants to be woken.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lorafleet_proto::v1 as pb;
use tokio::{
    sync::{Notify, broadcast, mpsc},
    time::Instant,
};
use tonic::Status;

use crate::{
    ids::{Fence, JobId, RunId, WorkerId},
    metrics,
};

/// Messages that wait for a worker to read them.
pub const OUTBOX: usize = 64;
/// Changes that wait for a watcher; one that falls behind looks at its job anyway.
const CHANGES: usize = 1024;

/// No gang waits for its members this long; what is older belongs to a job that has ended.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// What goes to a worker.
pub type Outbound = Result<pb::CoordinatorMessage, Status>;

/// The hub of one coordinator process. Everything in it may be lost: rows are the truth.
#[derive(Debug)]
pub struct Hub {
    connections: Mutex<Connections>,
    changes: broadcast::Sender<JobId>,
    scheduler: Notify,
    submissions: Notify,
    dispatch: Notify,
    /// Since when gangs wait for the rest of their members to part, by this process's clock.
    waiting: Mutex<HashMap<JobId, (Fence, Instant)>>,
}

#[derive(Debug, Default)]
struct Connections {
    next: u64,
    by_worker: HashMap<WorkerId, Connection>,
    /// Heard of since the last time that leases were renewed.
    heard: HashSet<WorkerId>,
}

#[derive(Debug)]
struct Connection {
    id: u64,
    outbox: mpsc::Sender<Outbound>,
    heartbeats: u64,
    running: HashMap<RunId, Fence>,
    begun: HashMap<RunId, (Fence, u64)>,
}

/// A worker's stream as it stood at one moment.
#[derive(Clone, Debug)]
pub struct Connected {
    /// The worker.
    pub worker: WorkerId,
    /// Tells its streams apart.
    pub connection: u64,
    /// Where messages to it go.
    pub outbox: mpsc::Sender<Outbound>,
    /// Heartbeats on this stream so far.
    pub heartbeats: u64,
    /// What it says that it runs, and under which fence.
    pub running: HashMap<RunId, Fence>,
    /// The generations that it was told to begin, and at which heartbeat.
    pub begun: HashMap<RunId, (Fence, u64)>,
}

/// A stream's place in the hub; given up when dropped.
#[derive(Debug)]
pub struct Seat {
    hub: Arc<Hub>,
    worker: WorkerId,
    id: u64,
}

impl Hub {
    /// An empty hub.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            connections: Mutex::default(),
            changes: broadcast::Sender::new(CHANGES),
            scheduler: Notify::new(),
            submissions: Notify::new(),
            dispatch: Notify::new(),
            waiting: Mutex::default(),
        })
    }

    /// Takes a worker's stream in; an earlier stream of the same worker is dropped.
    pub fn connect(self: &Arc<Self>, worker: WorkerId, outbox: mpsc::Sender<Outbound>) -> Seat {
        let mut connections = self.lock();
        connections.next += 1;
        let id = connections.next;
        let connection =
            Connection { id, outbox, heartbeats: 0, running: HashMap::new(), begun: HashMap::new() };
        connections.by_worker.insert(worker, connection);
        metrics::connected(connections.by_worker.len());
        drop(connections);
        Seat { hub: Arc::clone(self), worker, id }
    }

    /// All streams as they are now.
    pub fn connected(&self) -> Vec<Connected> {
        let connections = self.lock();
        let stream = |(worker, c): (&WorkerId, &Connection)| Connected {
            worker: *worker,
            connection: c.id,
            outbox: c.outbox.clone(),
            heartbeats: c.heartbeats,
            running: c.running.clone(),
            begun: c.begun.clone(),
        };
        connections.by_worker.iter().map(stream).collect()
    }

    /// A worker whose stream closed was not heard of since.
    pub fn forget_heard(&self, worker: WorkerId) {
        self.lock().heard.remove(&worker);
    }

    /// The workers that were heard of since the last call.
    pub fn take_heard(&self) -> Vec<WorkerId> {
        std::mem::take(&mut self.lock().heard).into_iter().collect()
    }

    /// Whether a worker's stream is open, here.
    pub fn is_connected(&self, worker: WorkerId) -> bool {
        self.lock().by_worker.contains_key(&worker)
    }

    /// Whether a worker that is connected here says that it runs the job.
    pub fn lists(&self, worker: WorkerId, job: JobId) -> bool {
        let connections = self.lock();
        connections.by_worker.get(&worker).is_some_and(|c| c.running.keys().any(|run| run.job == job))
    }

    /// Tells a worker to begin a generation, and notes that it was told. False: it is not connected here, or does not
    /// read; it is told again.
    pub fn begin(&self, worker: WorkerId, run: RunId, fence: &Fence, begin: pb::Begin) -> bool {
        let message = pb::coordinator_message::Message::Begin(begin);
        let mut connections = self.lock();
        let Some(connection) = connections.by_worker.get_mut(&worker) else { return false };
        let sent = connection.outbox.try_send(Ok(pb::CoordinatorMessage { message: Some(message) })).is_ok();
        if sent {
            connection.begun.retain(|other, _| other.job != run.job);
            connection.begun.insert(run, (fence.clone(), connection.heartbeats));
        }
        sent
    }

    /// Whether a worker was told to begin the generation under `fence`, on its stream of now.
    pub fn has_begun(&self, worker: WorkerId, run: RunId, fence: &Fence) -> bool {
        let connections = self.lock();
        let begun = connections.by_worker.get(&worker).and_then(|connection| connection.begun.get(&run));
        begun.is_some_and(|(told, _)| told == fence)
    }

    /// How long a gang has waited for its members to part from the generation under `fence`, as far as this process
    /// knows; it begins to count when it is first asked.
    pub fn waited(&self, job: JobId, fence: &Fence) -> Duration {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        waiting.retain(|_, (_, since)| now.duration_since(*since) < LONGEST_WAIT);
        let entry = waiting.entry(job).or_insert_with(|| (fence.clone(), now));
        if entry.0 != *fence {
            *entry = (fence.clone(), now);
        }
        now.duration_since(entry.1)
    }

    /// A gang waits no longer.
    pub fn forget_waiting(&self, job: JobId) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&job);
    }

    /// Tells all other members of a gang that are connected here. A full outbox passes it over: what matters is said
    /// again to whoever asks again.
    pub fn tell_others(&self, sender: WorkerId, job: JobId, attempt: u32, message: &pb::CoordinatorMessage) {
        for (worker, connection) in &self.lock().by_worker {
            let runs_it = connection.running.keys().any(|run| run.job == job && run.attempt == attempt);
            if *worker != sender && runs_it {
                let _ = connection.outbox.try_send(Ok(message.clone()));
            }
        }
    }

    /// A worker's lease has ended: it is told, and its stream ends.
    pub fn disown(&self, worker: WorkerId, superseded: bool) {
        let mut connections = self.lock();
        if let Some(connection) = connections.by_worker.remove(&worker) {
            // A full outbox belongs to a worker that does not read; it finds its stream closed.
            let _ = connection.outbox.try_send(Ok(unknown(superseded)));
        }
        metrics::connected(connections.by_worker.len());
    }

    /// A job's row, history or points changed.
    pub fn job_changed(&self, job: JobId) {
        // Without watchers there is nobody to tell.
        let _ = self.changes.send(job);
    }

    /// Changes from now on.
    pub fn changes(&self) -> broadcast::Receiver<JobId> {
        self.changes.subscribe()
    }

    /// There may be something to schedule.
    pub fn want_scheduler(&self) {
        self.scheduler.notify_one();
    }

    /// There may be something to tell workers.
    pub fn want_dispatch(&self) {
        self.dispatch.notify_one();
    }

    /// Tells the scheduler that somebody joined the queue: less pressing than a worker that became free.
    pub fn queue_grew(&self) {
        self.submissions.notify_one();
    }

    /// Waits for [`Hub::queue_grew`].
    pub async fn longer_queue(&self) {
        self.submissions.notified().await;
    }

    /// Waits for [`Hub::want_scheduler`].
    pub async fn scheduler_wanted(&self) {
        self.scheduler.notified().await;
    }

    /// Waits for [`Hub::want_dispatch`].
    pub async fn dispatch_wanted(&self) {
        self.dispatch.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        // No code panics while it holds the lock, and a poisoned map would still be whole.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Whose stream it is.
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// A heartbeat came, with what the worker runs.
    pub fn heard(&self, running: HashMap<RunId, Fence>) {
        let mut connections = self.hub.lock();
        connections.heard.insert(self.worker);
        if let Some(connection) = self.own(&mut connections) {
            connection.heartbeats += 1;
            connection.begun.retain(|run, _| running.contains_key(run));
            connection.running = running;
        }
    }

    /// Whether the worker's last heartbeat listed a place of this attempt.
    pub fn lists(&self, job: JobId, attempt: u32) -> bool {
        let mut connections = self.hub.lock();
        let listed = self.own(&mut connections).map(|connection| connection.running.keys());
        listed.is_some_and(|mut runs| runs.any(|run| run.job == job && run.attempt == attempt))
    }

    /// The worker said that its part in a job is over: it no longer runs it, whatever the last heartbeat said.
    pub fn finished(&self, run: RunId) {
        let mut connections = self.hub.lock();
        if let Some(connection) = self.own(&mut connections) {
            connection.running.remove(&run);
            connection.begun.remove(&run);
        }
    }

    fn own<'a>(&self, connections: &'a mut Connections) -> Option<&'a mut Connection> {
        connections.by_worker.get_mut(&self.worker).filter(|connection| connection.id == self.id)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut connections = self.hub.lock();
        if self.own(&mut connections).is_some() {
            connections.by_worker.remove(&self.worker);
        }
        metrics::connected(connections.by_worker.len());
    }
}

/// Tells a worker that its lease has ended; `superseded` when another process has its name now.
pub fn unknown(superseded: bool) -> pb::CoordinatorMessage {
    let unknown = pb::coordinator_message::Message::Unknown(pb::Unknown { superseded });
    pb::CoordinatorMessage { message: Some(unknown) }
}
