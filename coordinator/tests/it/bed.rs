//! What a test stands on: a throwaway Postgres, a store with the example's base and data, coordinators, clients.

use std::{collections::BTreeMap, future::Future, net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser as _;
use lorafleet_coordinator::{Config, RunError, run};
use lorafleet_postgres::{Options, Postgres};
use lorafleet_proto::v1 as pb;
use lorafleet_store::{Digest, FileName, Store, Sums, layout};
use pb::{fleet_client::FleetClient, jobs_client::JobsClient};
use tokio::{
    net::TcpListener,
    runtime::{self, Runtime},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// Nothing in a test takes longer than this; it only bounds a failure.
pub const LONG: Duration = Duration::from_secs(40);

/// A Postgres and a store that coordinators share.
pub struct Bed {
    pub postgres: Postgres,
    pub database_url: String,
    pub store: Store,
    base: Digest,
    data: Digest,
    _folder: tempfile::TempDir,
}

/// A running coordinator, on a runtime of its own so that it can be killed whole.
pub struct Coordinator {
    pub address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
    runtime: Option<Runtime>,
}

impl Bed {
    pub async fn new() -> Self {
        Self::over(Postgres::throwaway().expect("a throwaway Postgres")).await
    }

    /// With a Postgres that forgets no commit when it is stopped.
    pub async fn durable() -> Self {
        let mut options = Options::throwaway();
        options.durable = true;
        Self::with(options).await
    }

    /// With a Postgres of these settings.
    pub async fn with(options: Options) -> Self {
        Self::over(Postgres::throwaway_with(options).expect("a throwaway Postgres")).await
    }

    async fn over(postgres: Postgres) -> Self {
        if std::env::var_os("LORAFLEET_LOG").is_some() {
            // For whoever looks for a fault; a second test in this process finds it set up.
            let _ = lorafleet_telemetry::init("test", lorafleet_telemetry::LogFormat::Human);
        }
        let database_url = postgres.fresh_database().expect("a database");
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("file://{}", folder.path().display());
        let store = Store::open(&url).expect("a store");
        let (base, data) = (put_base(&store).await, put_data(&store).await);
        Self { postgres, database_url, store, base, data, _folder: folder }
    }

    /// Starts a coordinator with short times.
    pub async fn coordinator(&self) -> Coordinator {
        self.coordinator_with(&[]).await
    }

    pub async fn coordinator_with(&self, more: &[&str]) -> Coordinator {
        let mut args = vec!["lorafleet-coordinator", "--database-url", &self.database_url, "--store"];
        args.extend([self.store.url(), "--lease", "1500ms", "--heartbeat", "200ms", "--poll", "50ms"]);
        args.extend(["--gather", "100ms"]);
        args.extend(more);
        let config = Config::try_parse_from(args).expect("valid flags");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = listener.into_std().expect("a listener");
        let task = runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            run(&config, listener, token).await
        });
        Coordinator { address, shutdown, task, runtime: Some(runtime) }
    }

    /// A small valid job for `min` to `max` workers.
    pub fn spec(&self, min: u32, max: u32) -> pb::JobSpec {
        let data = pb::DataRef { source: "games".into(), sha256: self.data.to_string() };
        pb::JobSpec {
            display_name: "games".into(),
            base: Some(pb::BaseRef { source: "base".into(), sha256: self.base.to_string() }),
            data: Some(pb::DataSpec { train: vec![data.clone()], eval: vec![data], ..Default::default() }),
            adapter: Some(pb::AdapterSpec { rank: 4, ..Default::default() }),
            workers: Some(pb::WorkersSpec { min, max }),
            checkpoint: Some(pb::CheckpointSpec { every: 10, keep: 2, ..Default::default() }),
            ..Default::default()
        }
    }

    /// Deletes the data set from the store.
    pub async fn forget_data(&self) {
        self.store.delete(&layout::dataset(&self.data)).await.expect("deleted");
    }

    /// Waits until some coordinator schedules.
    pub async fn until_led(&self) {
        let led = "select count(*) from scheduler_lease where holder is not null";
        // There is no such table before the first coordinator has migrated.
        soon("a leader", || async { (self.try_count(led).await.ok()? == 1).then_some(()) }).await;
    }

    /// One number that a statement gives.
    pub async fn count(&self, sql: &'static str) -> i64 {
        self.try_count(sql).await.expect("a count")
    }

    async fn try_count(&self, sql: &'static str) -> sqlx::Result<i64> {
        let mut connection = connect(&self.database_url).await;
        sqlx::query_scalar(sql).fetch_one(&mut connection).await
    }
}

impl Coordinator {
    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("a URL");
        soon("the coordinator to accept", || async { endpoint.connect().await.ok() }).await
    }

    pub async fn jobs(&self) -> JobsClient<Channel> {
        JobsClient::new(self.channel().await)
    }

    pub async fn fleet(&self) -> FleetClient<Channel> {
        FleetClient::new(self.channel().await)
    }

    /// Submits a job and returns its name.
    pub async fn submit(&self, spec: pb::JobSpec) -> String {
        let request = pb::CreateJobRequest { spec: Some(spec), ..Default::default() };
        self.jobs().await.create_job(request).await.expect("a job").into_inner().name
    }

    pub async fn get(&self, job: &str) -> pb::Job {
        let request = pb::GetJobRequest { name: job.into() };
        self.jobs().await.get_job(request).await.expect("a job").into_inner()
    }

    /// Waits until a job is as wanted.
    pub async fn until(&self, job: &str, what: &str, is: impl Fn(&pb::Job) -> bool) -> pb::Job {
        soon(what, || async { Some(self.get(job).await).filter(&is) }).await
    }

    pub async fn until_state(&self, job: &str, state: pb::JobState) -> pb::Job {
        self.until(job, state.as_str_name(), |job| job.state() == state).await
    }

    pub async fn attempts(&self, job: &str) -> Vec<pb::Attempt> {
        let request = pb::ListAttemptsRequest { parent: job.into(), ..Default::default() };
        self.jobs().await.list_attempts(request).await.expect("attempts").into_inner().attempts
    }

    pub async fn events(&self, job: &str) -> Vec<pb::JobEvent> {
        let request = pb::ListEventsRequest { parent: job.into(), page_size: 1000, ..Default::default() };
        self.jobs().await.list_events(request).await.expect("events").into_inner().events
    }

    pub async fn checkpoints(&self, job: &str) -> Vec<pb::Checkpoint> {
        let request = pb::ListCheckpointsRequest { parent: job.into(), ..Default::default() };
        self.jobs().await.list_checkpoints(request).await.expect("checkpoints").into_inner().checkpoints
    }

    pub async fn points(&self, job: &str) -> Vec<pb::MetricPoint> {
        let request = pb::ListMetricPointsRequest { parent: job.into(), ..Default::default() };
        self.jobs().await.list_metric_points(request).await.expect("points").into_inner().points
    }

    /// SIGTERM, in effect: drains and ends.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(LONG, &mut self.task).await.expect("it drains");
        ended.expect("no panic").expect("no error");
    }

    /// SIGKILL, in effect: nothing is given back.
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // A runtime must not wait for its threads within another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Asks again until there is an answer.
pub async fn soon<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, asking).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub async fn connect(url: &str) -> sqlx::PgConnection {
    <sqlx::PgConnection as sqlx::Connection>::connect(url).await.expect("a connection")
}

fn examples() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

async fn put_base(store: &Store) -> Digest {
    let mut files = BTreeMap::new();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        let bytes = std::fs::read(examples().join("base").join(name)).expect("a file of the base");
        files.insert(name.parse::<FileName>().expect("a name"), bytes);
    }
    let digests = files.iter().map(|(name, bytes)| (name.clone(), Digest::of(bytes))).collect();
    let sums = Sums::new(digests).expect("sums");
    let base = sums.digest();
    for (name, bytes) in files {
        store.put(&layout::base_file(&base, &name), bytes.into()).await.expect("stored");
    }
    store.put(&layout::base_sums(&base), sums.to_text().into()).await.expect("stored");
    base
}

async fn put_data(store: &Store) -> Digest {
    let bytes = std::fs::read(examples().join("games/validation.jsonl")).expect("the data");
    let digest = Digest::of(&bytes);
    store.put(&layout::dataset(&digest), bytes.into()).await.expect("stored");
    digest
}
