//! What is measured: one coordinator process on a database of a private Postgres that keeps what it acknowledges.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lorafleet_postgres::{Options, Postgres};
use lorafleet_proto::v1::{self as pb, fleet_client::FleetClient, jobs_client::JobsClient};
use lorafleet_store::{Digest, FileName, Store, Sums, layout};
use sqlx::{Connection as _, PgConnection};
use tonic::transport::{Channel, Endpoint};

use crate::{
    process::{Process, program},
    wait::until,
};

/// A coordinator on a cold, busy machine answers within this time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Clock ticks a second, as Linux counts a process's time for its users.
const TICKS: f64 = 100.0;

/// The server that all are measured on, ours and the peers.
///
/// # Errors
/// When it does not start.
pub fn postgres() -> Result<Postgres> {
    let mut options = Options::default();
    options.shared_buffers_mib = 128;
    options.max_connections = 120;
    Ok(Postgres::throwaway_with(options)?)
}

/// A coordinator, its database and its store.
pub struct Rig {
    coordinator: Process,
    address: String,
    /// The database's URL.
    pub database: String,
    base: Digest,
    data: Digest,
    _folder: tempfile::TempDir,
}

impl Rig {
    /// A coordinator on a fresh database, with further flags.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(postgres: &Postgres, flags: &[&str]) -> Result<Self> {
        let database = postgres.fresh_database()?;
        let folder = tempfile::tempdir()?;
        let url = format!("file://{}", folder.path().join("store").display());
        std::fs::create_dir(folder.path().join("store"))?;
        let store = Store::open(&url)?;
        let (base, data) = (put_base(&store).await?, put_data(&store).await?);
        let port = free_port()?;
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(program("lorafleet-coordinator")?);
        command.args(["--listen", &address, "--metrics-listen", "127.0.0.1:0", "--store", &url]);
        command.args(["--database-url", &database]).args(flags).env("LORAFLEET_LOG", "warn");
        let coordinator = Process::start("coordinator", &mut command, folder.path())?;
        let rig = Self { coordinator, address, database, base, data, _folder: folder };
        rig.channel().await?;
        Ok(rig)
    }

    /// A connection of its own.
    ///
    /// # Errors
    /// When the coordinator does not accept one in time.
    pub async fn channel(&self) -> Result<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address))?.tcp_nodelay(true);
        until("the coordinator accepts", PATIENCE, async || Ok(endpoint.connect().await.ok())).await
    }

    /// A client of jobs with a connection of its own.
    ///
    /// # Errors
    /// As [`Rig::channel`].
    pub async fn jobs(&self) -> Result<JobsClient<Channel>> {
        Ok(JobsClient::new(self.channel().await?))
    }

    /// A client of the fleet with a connection of its own.
    ///
    /// # Errors
    /// As [`Rig::channel`].
    pub async fn fleet(&self) -> Result<FleetClient<Channel>> {
        Ok(FleetClient::new(self.channel().await?))
    }

    /// A request for a job of one worker.
    pub fn request(&self) -> pb::CreateJobRequest {
        let data = pb::DataRef { source: "games".into(), sha256: self.data.to_string() };
        let spec = pb::JobSpec {
            display_name: "nothing".into(),
            base: Some(pb::BaseRef { source: "base".into(), sha256: self.base.to_string() }),
            data: Some(pb::DataSpec { train: vec![data], ..Default::default() }),
            adapter: Some(pb::AdapterSpec { rank: 4, ..Default::default() }),
            workers: Some(pb::WorkersSpec { min: 1, max: 1 }),
            ..Default::default()
        };
        pb::CreateJobRequest { spec: Some(spec), ..Default::default() }
    }

    /// Seconds of processor time that the coordinator has used.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn coordinator_seconds(&self) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.coordinator.id()))?;
        let fields = text.rsplit_once(") ").context("a stat without a name")?.1;
        let mut ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
        let (user, system) = (ticks.next().context("no utime")??, ticks.next().context("no stime")??);
        Ok((user + system) / TICKS)
    }

    /// A connection to the database.
    ///
    /// # Errors
    /// When there is none.
    pub async fn sql(&self) -> Result<PgConnection> {
        Ok(PgConnection::connect(&self.database).await?)
    }

    /// One number that a statement gives.
    ///
    /// # Errors
    /// When it gives none.
    pub async fn count(&self, sql: &'static str) -> Result<i64> {
        Ok(sqlx::query_scalar(sql).fetch_one(&mut self.sql().await?).await?)
    }
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

async fn put_base(store: &Store) -> Result<Digest> {
    let mut files = BTreeMap::new();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        let bytes = std::fs::read(examples().join("base").join(name))?;
        files.insert(name.parse::<FileName>()?, bytes);
    }
    let digests = files.iter().map(|(name, bytes)| (name.clone(), Digest::of(bytes))).collect();
    let sums = Sums::new(digests)?;
    let base = sums.digest();
    for (name, bytes) in files {
        store.put(&layout::base_file(&base, &name), bytes.into()).await?;
    }
    store.put(&layout::base_sums(&base), sums.to_text().into()).await?;
    Ok(base)
}

async fn put_data(store: &Store) -> Result<Digest> {
    let bytes = std::fs::read(examples().join("games/validation.jsonl"))?;
    let digest = Digest::of(&bytes);
    store.put(&layout::dataset(&digest), bytes.into()).await?;
    Ok(digest)
}
