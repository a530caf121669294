//! What is measured: one coordinator process on a database of a private Postgres that keeps what it acknowledges.

use std::{
    collections::BTreeMap,
    io::{Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
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
/// Flushes of which the median is taken.
const FLUSHES: usize = 101;

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

/// Seconds of one flush of 8 KiB to the disk that the server's files lie on: the median of some.
///
/// # Errors
/// When the disk does not take it.
pub fn flush_seconds() -> Result<f64> {
    let mut file = tempfile::tempfile()?;
    let mut seconds = Vec::with_capacity(FLUSHES);
    for _ in 0..FLUSHES {
        // In place, as the server writes its log: the file's size does not change.
        file.seek(SeekFrom::Start(0))?;
        let start = Instant::now();
        file.write_all(&[7; 8192])?;
        file.sync_data()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[FLUSHES / 2])
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
        seconds_of(self.coordinator.id())
    }

    /// Seconds of processor time of the coordinator's sessions in Postgres so far.
    ///
    /// # Errors
    /// When the system does not tell.
    pub async fn session_seconds(&self) -> Result<f64> {
        let sessions = "select pid from pg_stat_activity
                        where application_name = 'lorafleet-coordinator' and datname = current_database()";
        let pids: Vec<i32> = sqlx::query_scalar(sessions).fetch_all(&mut self.sql().await?).await?;
        // One that has just ended is not counted.
        Ok(pids.into_iter().filter_map(|pid| seconds_of(u32::try_from(pid).ok()?).ok()).sum())
    }

    /// A connection to the database.
    ///
    /// # Errors
    /// When there is none.
    pub async fn sql(&self) -> Result<PgConnection> {
        Ok(PgConnection::connect(&self.database).await?)
    }

    /// Checks that there are so many jobs, that the events of each are numbered without a gap, and that nothing of one that
    /// has ended is live.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn check_rows(&self, jobs: usize) -> Result<()> {
        let stored = self.count("select count(*) from jobs").await?;
        ensure!(usize::try_from(stored) == Ok(jobs), "{stored} jobs are stored, {jobs} were accepted");
        let gaps = self
            .count(
                "select count(*) from jobs j where last_event <> (select count(*) from job_events e where e.job_id = j.job_id)
                   or last_event <> (select max(number) from job_events e where e.job_id = j.job_id)",
            )
            .await?;
        ensure!(gaps == 0, "{gaps} jobs have a gap in their events");
        let live = self
            .count(
                "select count(*) from jobs j where end_time is not null and (
                   exists (select 1 from attempts a where a.job_id = j.job_id and a.state = 'RUNNING')
                   or exists (select 1 from places p where p.job_id = j.job_id and p.live))",
            )
            .await?;
        ensure!(live == 0, "{live} jobs have ended and hold something live");
        Ok(())
    }

    /// One number that a statement gives.
    ///
    /// # Errors
    /// When it gives none.
    pub async fn count(&self, sql: &'static str) -> Result<i64> {
        Ok(sqlx::query_scalar(sql).fetch_one(&mut self.sql().await?).await?)
    }
}

fn seconds_of(process: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields = text.rsplit_once(") ").context("a stat without a name")?.1;
    let mut ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
    let (user, system) = (ticks.next().context("no utime")??, ticks.next().context("no stime")??);
    Ok((user + system) / TICKS)
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
