//! The worker's side of the fleet: registers, keeps one stream to the coordinator, runs what it is assigned.
//!
//! Training does not depend on the coordinator: while it is away, reports are kept, and sent when it is back.

mod backoff;
mod outbox;
mod session;
mod slot;
mod tidy;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lorafleet_proto::{GANG_PROTOCOL_VERSION, bearer::Bearer, v1 as pb};
use lorafleet_store::{Store, StoreError};
use pb::fleet_client::FleetClient;
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};
use tracing::{info, warn};

use self::slot::Slot;
pub use self::{
    backoff::Backoff,
    outbox::{Outbox, RunId},
    slot::Runner,
};

/// The longest pause between two tries to reach the coordinator: a restarted one soon sees its workers again.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// One connection to the coordinator.
const CONNECT: Duration = Duration::from_secs(3);
/// One call to the coordinator.
const CALL: Duration = Duration::from_secs(10);
/// Once a draining worker's run is over, its last reports may take this long.
const LAST_WORDS: Duration = Duration::from_secs(15);

/// What an agent needs to know.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The coordinator's URL.
    pub coordinator: String,
    /// What the coordinator is shown in each call.
    pub token: Bearer,
    /// The worker's name, unique in the fleet.
    pub name: String,
    /// What it has.
    pub resources: pb::WorkerResources,
    /// host:port at which peers reach its collective.
    pub collective_address: String,
    /// Used instead of the store that the coordinator names.
    pub store: Option<String>,
    /// How long a draining worker waits for its run to reach a step boundary.
    pub drain_limit: Duration,
    /// Labels that jobs can ask for.
    pub labels: BTreeMap<String, String>,
}

/// Why an agent gives up.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The coordinator's address cannot be used.
    #[error("the coordinator's URL {url:?} cannot be used: {reason}; it should look like http://host:port")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The coordinator refuses this worker, and trying again would not help.
    #[error("the coordinator refuses this worker: {0}")]
    Refused(String),
    /// Another process took this worker's name.
    #[error(
        "another process has registered under the name {0:?}, and this one is out: give each worker a name of its own \
         (--name)"
    )]
    Superseded(String),
    /// The store's URL cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The run did not come to a boundary in time.
    #[error("the run did not reach a step boundary within {} s of the drain", .0.as_secs())]
    DrainLimit(Duration),
}

/// What the outside may see of an agent.
#[derive(Clone, Default)]
pub struct AgentState(Arc<Mutex<Visible>>);

#[derive(Default)]
struct Visible {
    connected: bool,
    draining: bool,
}

impl AgentState {
    /// Connected, and taking new work.
    pub fn is_ready(&self) -> bool {
        let visible = self.lock();
        visible.connected && !visible.draining
    }

    fn set_connected(&self, connected: bool) {
        self.lock().connected = connected;
    }

    fn set_draining(&self) {
        self.lock().draining = true;
    }

    fn lock(&self) -> MutexGuard<'_, Visible> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reports on their way, and who is waiting to send them.
#[derive(Default)]
pub(crate) struct Mailbox {
    outbox: Mutex<Outbox>,
    news: Notify,
}

impl Mailbox {
    /// Changes the outbox, and wakes the sender.
    fn put<T>(&self, change: impl FnOnce(&mut Outbox) -> T) -> T {
        let result = change(&mut self.lock());
        self.news.notify_one();
        result
    }

    fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The agent of one worker process.
pub struct Agent {
    options: AgentOptions,
    /// Tells this process from another one of the same name.
    process_id: String,
    state: AgentState,
    client: FleetClient<InterceptedService<Channel, Bearer>>,
    mailbox: Arc<Mailbox>,
    slot: Slot,
    /// SIGTERM: no new work, leave at the next boundary.
    drain: CancellationToken,
    drained_at: Option<Instant>,
    idle_at: Option<Instant>,
}

/// What a registration brings.
struct Terms {
    worker_id: String,
    heartbeat: Duration,
    store: Store,
}

/// How a stay with the coordinator ended.
enum Parted {
    /// The stream broke; the worker is still known.
    Disconnected(String),
    /// The coordinator does not know this worker any more.
    Unknown,
    /// The drain is complete.
    Drained,
}

impl Agent {
    /// An agent that runs its assignments with `runner` until `drain` is cancelled.
    ///
    /// # Errors
    /// The coordinator's URL cannot be used.
    pub fn new(
        options: AgentOptions,
        runner: Arc<dyn Runner>,
        drain: CancellationToken,
    ) -> Result<Self, AgentError> {
        let bad = |reason: String| AgentError::Url { url: options.coordinator.clone(), reason };
        let endpoint =
            Endpoint::from_shared(options.coordinator.clone()).map_err(|error| bad(error.to_string()))?;
        if endpoint.uri().host().is_none() || endpoint.uri().scheme().is_none() {
            return Err(bad("it has no scheme or no host".into()));
        }
        let channel = endpoint
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            .connect_lazy();
        let mailbox = Arc::new(Mailbox::default());
        let slot = Slot::new(runner, mailbox.clone());
        Ok(Self {
            process_id: uuid::Uuid::new_v4().simple().to_string(),
            state: AgentState::default(),
            // A message of the coordinator carries a spec, or a gang's members and checkpoints: never more than this.
            client: FleetClient::with_interceptor(channel, options.token.clone())
                .max_decoding_message_size(16 << 20),
            mailbox,
            slot,
            drain,
            drained_at: None,
            idle_at: None,
            options,
        })
    }

    /// What the outside may see of it.
    pub fn state(&self) -> AgentState {
        self.state.clone()
    }

    /// Serves until the drain is complete.
    ///
    /// # Errors
    /// The coordinator refuses this worker for good, or the drain takes too long.
    pub async fn run(mut self) -> Result<(), AgentError> {
        let mut backoff = Backoff::new(Duration::from_millis(100), LONGEST_PAUSE);
        loop {
            let Some(terms) = self.register(&mut backoff).await? else { return Ok(()) };
            loop {
                let started = Instant::now();
                let parted = self.session(&terms).await?;
                self.state.set_connected(false);
                self.slot.set_connected(false);
                if started.elapsed() > Duration::from_secs(5) {
                    backoff.reset();
                }
                match parted {
                    Parted::Drained => return Ok(()),
                    Parted::Unknown => {
                        warn!("the coordinator does not know this worker any more; registering anew");
                        if self.pause(backoff.pause()).await? {
                            return Ok(());
                        }
                        break;
                    }
                    Parted::Disconnected(reason) => {
                        metrics::counter!(crate::telemetry::DISCONNECTS).increment(1);
                        let pause = backoff.pause();
                        warn!(reason, retry_in = ?pause, "no stream to the coordinator");
                        if self.pause(pause).await? {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    /// Registers, as often as it takes; nothing when the worker drained meanwhile.
    async fn register(&mut self, backoff: &mut Backoff) -> Result<Option<Terms>, AgentError> {
        let request = pb::RegisterWorkerRequest {
            name: self.options.name.clone(),
            protocol_version: GANG_PROTOCOL_VERSION,
            resources: Some(self.options.resources.clone()),
            collective_address: self.options.collective_address.clone(),
            process_id: self.process_id.clone(),
            labels: self.options.labels.clone(),
        };
        loop {
            let call = tokio::time::timeout(CALL, self.client.register_worker(request.clone())).await;
            let reason = match call {
                Ok(Ok(response)) => return self.terms(response.into_inner()).map(Some),
                Ok(Err(status)) if is_final(status.code()) => {
                    return Err(AgentError::Refused(status.message().to_owned()));
                }
                Ok(Err(status)) => describe(&status),
                Err(_) => format!("no answer within {} s", CALL.as_secs()),
            };
            let pause = backoff.pause();
            warn!(coordinator = self.options.coordinator, reason, retry_in = ?pause, "not registered yet");
            if self.pause(pause).await? {
                return Ok(None);
            }
        }
    }

    fn terms(&self, response: pb::RegisterWorkerResponse) -> Result<Terms, AgentError> {
        let store = Store::open(self.options.store.as_deref().unwrap_or(&response.store_url))?;
        info!(worker_id = response.worker_id, store = store.url(), "registered");
        let heartbeat = Duration::from_millis(response.heartbeat_millis.clamp(10, 60_000).into());
        Ok(Terms { worker_id: response.worker_id, heartbeat, store })
    }

    /// Waits without a stream; true when the drain is complete.
    async fn pause(&mut self, pause: Duration) -> Result<bool, AgentError> {
        let until = Instant::now() + pause;
        loop {
            self.slot.reap(None);
            if self.drained()? {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            sleep(left.min(Duration::from_millis(100))).await;
        }
    }

    /// Begins the drain when told to, and says whether it is complete: no run, and nothing left to report, or the
    /// coordinator has been away for too long.
    fn drained(&mut self) -> Result<bool, AgentError> {
        if !self.drain.is_cancelled() {
            return Ok(false);
        }
        if self.drained_at.is_none() {
            info!("draining: no new work; the run leaves at its next step boundary");
            self.drained_at = Some(Instant::now());
            self.state.set_draining();
            self.slot.drain();
        }
        if !self.slot.is_idle() {
            let over = self.drained_at.is_some_and(|at| at.elapsed() > self.options.drain_limit);
            return if over { Err(AgentError::DrainLimit(self.options.drain_limit)) } else { Ok(false) };
        }
        let idle_for = self.idle_at.get_or_insert_with(Instant::now).elapsed();
        Ok(self.mailbox.lock().is_empty() || idle_for > LAST_WORDS)
    }
}

/// Whether a refusal stays one.
fn is_final(code: tonic::Code) -> bool {
    use tonic::Code;
    matches!(
        code,
        Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::Unimplemented
            | Code::PermissionDenied
            | Code::Unauthenticated
    )
}

/// A status with its causes, which hold what went wrong with the connection.
fn describe(status: &tonic::Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
