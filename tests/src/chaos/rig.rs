//! The fleet under test: every line between its programs goes through something that can break it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use lorafleet_postgres::Postgres;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::{
    client::Client,
    clock::{Clock, ClockLibrary},
    disk::Disk,
    netns::{Host, Network},
    proxy::{Proxy, Upstream},
};
use crate::{
    process::{Process, program},
    s3::{BUCKET, S3},
};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Short, so that a run is; what is checked does not depend on it.
const LEASE: [&str; 4] = ["--lease", "4s", "--heartbeat", "500ms"];
const SILENCE: [&str; 2] = ["--peer-silence", "2s"];
/// Says each finished step, with its fence.
const STEP_LOG: &str = "info,lorafleet_worker::run=debug";

/// How soon the fleet takes somebody for dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As its programs do by themselves.
    Default,
    /// Sooner.
    Short,
}

/// How the fleet is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub coordinators: u32,
    /// Workers in network namespaces of their own.
    pub namespaces: bool,
    pub pace: Pace,
}

/// A running fleet. Everything ends when it is dropped.
pub struct Rig {
    // Dropped in this order: programs before what they use, the folder last.
    pub workers: BTreeMap<String, Worker>,
    pub coordinators: Vec<Coordinator>,
    pub database: Proxy,
    pub store: S3,
    pub postgres: Postgres,
    network: Option<Network>,
    clocks: Option<ClockLibrary>,
    /// Environment of all programs.
    env: Vec<(String, String)>,
    ip: IpAddr,
    pace: Pace,
    started: u32,
    dir: TempDir,
}

/// A worker and what is its own.
pub struct Worker {
    pub process: Process,
    pub host: Option<Host>,
    pub clock: Option<Clock>,
    _disk: Option<Disk>,
}

/// A coordinator; its proxy stands between it and the workers.
pub struct Coordinator {
    pub process: Process,
    pub proxy: Proxy,
    pub address: SocketAddr,
}

/// How a worker is started.
#[derive(Clone, Debug, Default)]
pub struct Start<'a> {
    /// What `LORAFLEET_FAILPOINT` says.
    pub failpoint: Option<&'a str>,
    /// Its files lie on a disk that is full.
    pub full_disk: bool,
}

impl Rig {
    /// Starts everything but workers.
    pub async fn start(layout: Layout, defect: Option<&str>) -> Result<Rig> {
        let dir = tempfile::Builder::new().prefix("lorafleet-chaos-").tempdir()?;
        let network = if layout.namespaces { Some(Network::start()?) } else { None };
        let ip = network.as_ref().map_or(LOOPBACK, Network::gateway);
        // A restart of Postgres forgets nothing that it acknowledged; one that does is a failover, and another promise.
        let mut settings = lorafleet_postgres::Options::throwaway();
        settings.durable = true;
        let postgres = Postgres::throwaway_with(settings).context("start a private Postgres")?;
        let database = Proxy::start(ip, Upstream::Unix(postgres.socket())).await?;
        let store = S3::start_at(ip, &dir.path().join("s3")).await?;
        let mut env = store.env();
        env.extend(defect.map(|name| (lorafleet_failpoint::DEFECT.to_owned(), name.to_owned())));
        let clocks = ClockLibrary::build(dir.path()).ok();
        let mut rig = Rig {
            workers: BTreeMap::new(),
            coordinators: Vec::new(),
            database,
            store,
            postgres,
            network,
            clocks,
            env,
            ip,
            pace: layout.pace,
            started: 0,
            dir,
        };
        for number in 0..layout.coordinators {
            rig.add_coordinator(number).await?;
        }
        Ok(rig)
    }

    async fn add_coordinator(&mut self, number: u32) -> Result<()> {
        let address = SocketAddr::new(self.ip, TcpListener::bind((self.ip, 0))?.local_addr()?.port());
        let process = self.coordinator_process(number as usize, address)?;
        let proxy = Proxy::start(self.ip, Upstream::Tcp(address)).await?;
        self.coordinators.push(Coordinator { process, proxy, address });
        self.client().answers(number as usize).await
    }

    fn coordinator_process(&self, number: usize, address: SocketAddr) -> Result<Process> {
        let name = format!("coordinator-{number}");
        let home = self.home(&name)?;
        let database = format!("postgres://lorafleet@{}/postgres", self.database.address());
        let mut command = Command::new(program("lorafleet-coordinator")?);
        command
            .current_dir(&home)
            .env("HOME", &home)
            .envs(self.env.clone())
            .args(["--listen", &address.to_string(), "--metrics-listen", "127.0.0.1:0"])
            .args(["--database-url", &database, "--store", &format!("s3://{BUCKET}/root")])
            .args(["--log-format", "json"])
            .args(LEASE.iter().filter(|_| self.pace == Pace::Short));
        Process::start(&name, &mut command, self.dir.path())
    }

    /// Starts a coordinator that has ended anew, at its old address.
    pub fn restart_coordinator(&mut self, number: usize) -> Result<()> {
        let address = self.coordinators[number].address;
        self.coordinators[number].process = self.coordinator_process(number, address)?;
        Ok(())
    }

    /// Starts a worker under a name that no worker has had; returns the name.
    pub fn add_worker(&mut self, start: &Start<'_>) -> Result<String> {
        self.started += 1;
        let name = format!("w{}", self.started);
        let home = self.home(&name)?;
        let host = self.network.as_mut().map(Network::add).transpose()?;
        let program = program("lorafleet-worker")?;
        let mut command = host.as_ref().map_or_else(|| Command::new(&program), |host| host.command(&program));
        let cache = home.join("cache");
        let disk = start.full_disk.then(|| Disk::full(&cache)).transpose()?;
        let shift = self.dir.path().join(format!("{name}.clock"));
        let clock = self.clocks.as_ref().map(|library| library.clock(shift)).transpose()?;
        let ip = host.as_ref().map_or(LOOPBACK, |host| host.ip.into());
        let at = self.started as usize % self.coordinators.len();
        command
            .current_dir(&home)
            .env("HOME", &home)
            .env("LORAFLEET_LOG", STEP_LOG)
            .envs(self.env.clone())
            .envs(clock.iter().flat_map(Clock::env))
            .envs(start.failpoint.map(|text| (lorafleet_failpoint::FAILPOINT, text)))
            .args(["--coordinator", &format!("http://{}", self.coordinators[at].proxy.address())])
            .args(["--name", &name, "--threads", "1", "--log-format", "json"])
            .args(SILENCE.iter().filter(|_| self.pace == Pace::Short))
            .args(["--collective-listen", &SocketAddr::new(ip, 0).to_string()])
            .args(["--health-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"])
            .arg("--cache-dir")
            .arg(&cache);
        let process = Process::start(&name, &mut command, self.dir.path())?;
        self.workers.insert(name.clone(), Worker { process, host, clock, _disk: disk });
        Ok(name)
    }

    /// Forgets the workers that have ended; how many are left.
    pub fn reap(&mut self) -> usize {
        self.workers.retain(|_, worker| worker.process.is_running());
        self.workers.len()
    }

    /// A client of whichever coordinator answers.
    pub fn client(&self) -> Client {
        Client::new(self.coordinators.iter().map(|coordinator| coordinator.address).collect())
    }

    /// Submits a job file through the command line; returns the job's name.
    pub fn submit(&self, file: &Path) -> Result<String> {
        let answer: Value =
            serde_json::from_slice(&self.cli(&["submit", &file.display().to_string(), "--json"])?)?;
        Ok(answer["name"].as_str().context("no name in the answer of submit")?.to_owned())
    }

    /// Downloads the job's adapter through the command line; returns the sha256 of its weights.
    pub fn adapter_sha256(&self, job: &str) -> Result<String> {
        let to = self.dir.path().join(format!("adapter-{}", job.replace('/', "-")));
        self.cli(&["download", job, &to.display().to_string()])?;
        let bytes = std::fs::read(to.join("adapter_model.safetensors"))?;
        Ok(Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect())
    }

    fn cli(&self, args: &[&str]) -> Result<Vec<u8>> {
        let mut last = String::new();
        for coordinator in &self.coordinators {
            let home = self.home("client")?;
            let output = Command::new(program("lorafleet")?)
                .current_dir(&home)
                .env("HOME", &home)
                .env("LORAFLEET_COORDINATOR", format!("http://{}", coordinator.address))
                .args(args)
                .output()
                .context("run lorafleet")?;
            if output.status.success() {
                return Ok(output.stdout);
            }
            last = String::from_utf8_lossy(&output.stderr).into_owned();
        }
        bail!("lorafleet {args:?}: {last}")
    }

    /// What all workers that ever were have printed, by their names.
    pub fn worker_logs(&self) -> BTreeMap<String, String> {
        self.logs(|name| name.starts_with('w'))
    }

    /// Lines in the logs of programs that contain one of these.
    pub fn lines_with(&self, program: impl Fn(&str) -> bool, patterns: &[&str]) -> u64 {
        let has = |line: &&str| patterns.iter().any(|pattern| line.contains(pattern));
        self.logs(program).values().map(|log| log.lines().filter(has).count() as u64).sum()
    }

    fn logs(&self, wanted: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
        let read = |path: PathBuf| {
            let name = path.file_name()?.to_str()?.strip_suffix(".log")?.to_owned();
            let bytes = wanted(&name).then(|| std::fs::read(&path).ok())??;
            Some((name, String::from_utf8_lossy(&bytes).into_owned()))
        };
        let entries = std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten();
        entries.filter_map(|entry| read(entry.path())).collect()
    }

    /// An existing directory for one program.
    pub fn home(&self, name: &str) -> Result<PathBuf> {
        let home = self.dir.path().join("homes").join(name);
        std::fs::create_dir_all(&home)?;
        Ok(home)
    }

    /// Keeps the folder with all logs; where it is.
    pub fn keep_logs(&mut self) -> PathBuf {
        self.dir.disable_cleanup(true);
        self.dir.path().to_owned()
    }
}
