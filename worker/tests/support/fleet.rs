//! A store with the example's base and data, and workers within the test's process.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lorafleet_proto::v1 as pb;
use lorafleet_spec::{base::base_files, job::fill_defaults};
use lorafleet_store::{Digest, Store, Sums, layout};
use lorafleet_worker::{
    agent::{Agent, AgentError, AgentOptions, AgentState},
    base_cache::Cache,
    collective::tcp::{Listener, TcpOptions},
    run::Workshop,
    serve::Trainers,
};
use tempfile::TempDir;
use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{Coordinator, PATIENCE};

/// A worker within this process.
pub struct Worker {
    pub state: AgentState,
    pub drain: CancellationToken,
    pub running: JoinHandle<Result<(), AgentError>>,
}

impl Worker {
    /// Starts a worker with a cache of its own.
    pub fn start(fleet: &Fleet, name: &str, threads: usize) -> Self {
        let tcp = TcpOptions { silence: Duration::from_secs(30), ..TcpOptions::default() };
        let listener = Listener::bind("127.0.0.1:0", tcp.handshake).unwrap();
        let options = AgentOptions {
            coordinator: fleet.coordinator.url.clone(),
            name: name.to_owned(),
            resources: pb::WorkerResources { slots: 1, ..Default::default() },
            collective_address: listener.local_address().to_string(),
            store: None,
            drain_limit: PATIENCE,
            labels: Default::default(),
            token: Default::default(),
        };
        let workshop = Workshop {
            cache: Cache::open(&fleet.dir.path().join(name)).unwrap(),
            listener,
            tcp,
            alone_limit: Duration::from_secs(600),
            pool: rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap(),
            kind: "test".to_owned(),
            runtime: Handle::current(),
            background: Handle::current(),
        };
        let drain = CancellationToken::new();
        let agent = Agent::new(options, Arc::new(Trainers(Arc::new(workshop))), drain.clone()).unwrap();
        let state = agent.state();
        Self { state, drain, running: tokio::spawn(agent.run()) }
    }
}

/// A coordinator, and a store with the example's base and some of its data.
pub struct Fleet {
    pub dir: TempDir,
    pub store: Store,
    pub coordinator: Coordinator,
    base: Digest,
    train: Digest,
    eval: Digest,
}

impl Fleet {
    pub async fn start() -> Self {
        Self::start_on(|example, _| example.to_path_buf()).await
    }

    /// The same on a tiny base, for hundreds of steps.
    pub async fn start_tiny() -> Self {
        let tiny = |example: &Path, dir: &Path| {
            let folder = dir.join("tiny");
            super::tiny::write(example, &folder);
            folder
        };
        Self::start_on(tiny).await
    }

    /// On the base that is made of the example's, in a folder that is there to be written to.
    async fn start_on(base: impl FnOnce(&Path, &Path) -> PathBuf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().join("store").display());
        let store = Store::open(&url).unwrap();
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
        let base = put_base(&store, &base(&examples.join("base"), dir.path())).await;
        let train = put_data(&store, &examples.join("games/train.jsonl"), 32).await;
        let eval = put_data(&store, &examples.join("games/validation.jsonl"), 4).await;
        let coordinator = Coordinator::start(&url).await;
        Self { dir, store, coordinator, base, train, eval }
    }

    /// A job of so many small steps.
    pub fn spec(&self, steps: u64) -> pb::JobSpec {
        let data = |digest: &Digest| pb::DataRef { source: "data.jsonl".into(), sha256: digest.to_string() };
        let mut spec = pb::JobSpec {
            display_name: "test".into(),
            base: Some(pb::BaseRef { source: "./base".into(), sha256: self.base.to_string() }),
            data: Some(pb::DataSpec {
                train: vec![data(&self.train)],
                eval: vec![data(&self.eval)],
                ..Default::default()
            }),
            adapter: Some(pb::AdapterSpec { rank: 4, ..Default::default() }),
            train: Some(pb::TrainSpec {
                length: Some(pb::train_spec::Length::Steps(steps)),
                global_batch: 4,
                max_length: 48,
                ..Default::default()
            }),
            eval: Some(pb::EvalSpec {
                every: 3,
                prompts: vec!["Describe the Debian package chess".into()],
                max_new_tokens: 5,
                ..Default::default()
            }),
            checkpoint: Some(pb::CheckpointSpec { every: 2, keep: 3, ..Default::default() }),
            workers: Some(pb::WorkersSpec { min: 1, max: 3 }),
            ..Default::default()
        };
        fill_defaults(&mut spec);
        spec
    }

    /// The file of a checkpoint in the store.
    pub fn file(&self, checkpoint: &pb::Checkpoint, name: &str) -> PathBuf {
        self.dir.path().join("store").join(&checkpoint.name).join(name)
    }
}

async fn put_base(store: &Store, dir: &Path) -> Digest {
    let mut files = BTreeMap::new();
    let mut contents = Vec::new();
    for name in base_files(dir).unwrap() {
        let bytes = std::fs::read(dir.join(&name)).unwrap();
        let name: lorafleet_store::FileName = name.parse().unwrap();
        files.insert(name.clone(), Digest::of(&bytes));
        contents.push((name, bytes));
    }
    let sums = Sums::new(files).unwrap();
    let digest = sums.digest();
    for (name, bytes) in contents {
        store.put(&layout::base_file(&digest, &name), bytes.into()).await.unwrap();
    }
    store.put(&layout::base_sums(&digest), sums.to_text().into()).await.unwrap();
    digest
}

async fn put_data(store: &Store, file: &Path, lines: usize) -> Digest {
    let text = std::fs::read_to_string(file).unwrap();
    let text: String = text.lines().take(lines).flat_map(|line| [line, "\n"]).collect();
    let digest = Digest::of(text.as_bytes());
    store.put(&layout::dataset(&digest), text.into()).await.unwrap();
    digest
}
