//! A fleet of its own for each test: Postgres, store, coordinators, workers and the command line, on loopback.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use lorafleet_postgres::Postgres;
use lorafleet_proto::v1::{self as pb, fleet_client::FleetClient, jobs_client::JobsClient};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::{
    job_file::JobFile,
    process::{Process, program},
    s3::{BUCKET, S3},
    wait::until,
};

/// Generous: the tests share two cores with each other.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// How a fleet is laid out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Objects behind an S3 server instead of in a folder.
    pub s3: bool,
    /// Coordinators on the one database; 0 means 1.
    pub coordinators: usize,
    /// A Postgres that keeps every commit when it is stopped; otherwise it forgets the last ones.
    pub durable: bool,
}

/// A running fleet. Everything ends when it is dropped.
pub struct Fleet {
    // Dropped in this order: clients of Postgres before Postgres, and the folder last.
    pub workers: BTreeMap<String, Process>,
    pub coordinators: Vec<Process>,
    ports: Vec<u16>,
    env: Vec<(String, String)>,
    store_url: String,
    database_url: String,
    _s3: Option<S3>,
    pub postgres: Postgres,
    pub dir: TempDir,
}

impl Fleet {
    /// Starts Postgres, the store and the coordinators; no worker yet.
    pub async fn start(options: Options) -> Result<Fleet> {
        let dir = TempDir::new()?;
        let mut settings = lorafleet_postgres::Options::throwaway();
        settings.durable = options.durable;
        let postgres = Postgres::throwaway_with(settings).context("start a private Postgres")?;
        let database_url = postgres.url("postgres");
        let (s3, store_url, env) = if options.s3 {
            let s3 = S3::start(&dir.path().join("s3")).await?;
            let env = s3.env();
            (Some(s3), format!("s3://{BUCKET}/root"), env)
        } else {
            let store = dir.path().join("store");
            std::fs::create_dir_all(&store)?;
            (None, format!("file://{}", store.display()), Vec::new())
        };
        let mut fleet = Fleet {
            workers: BTreeMap::new(),
            coordinators: Vec::new(),
            ports: Vec::new(),
            env,
            store_url,
            database_url,
            _s3: s3,
            postgres,
            dir,
        };
        for _ in 0..options.coordinators.max(1) {
            fleet.start_coordinator().await?;
        }
        Ok(fleet)
    }

    /// Starts one more coordinator on the same database and store.
    pub async fn start_coordinator(&mut self) -> Result<()> {
        let (at, port) = (self.ports.len(), free_port()?);
        let process = self.coordinator(at, port)?;
        self.coordinators.push(process);
        self.ports.push(port);
        self.answers(at).await
    }

    /// Starts coordinator number `at` anew, at the address that it had.
    pub async fn restart_coordinator(&mut self, at: usize) -> Result<()> {
        self.coordinators[at] = self.coordinator(at, self.ports[at])?;
        self.answers(at).await
    }

    fn coordinator(&self, at: usize, port: u16) -> Result<Process> {
        let name = format!("coordinator-{at}");
        let home = self.home(&name)?;
        Process::start(
            &name,
            Command::new(program("lorafleet-coordinator")?)
                .current_dir(&home)
                .env("HOME", &home)
                .envs(self.env.clone())
                .args(["--listen", &format!("127.0.0.1:{port}")])
                .args(["--metrics-listen", "127.0.0.1:0"])
                .args(["--database-url", &self.database_url])
                .args(["--store", &self.store_url])
                .args(["--lease", "4s", "--heartbeat", "500ms"]),
            self.dir.path(),
        )
    }

    async fn answers(&self, at: usize) -> Result<()> {
        let url = self.url(at);
        until("the coordinator to answer", PATIENCE, || async {
            let mut client = FleetClient::connect(url.clone()).await?;
            client.list_workers(pb::ListWorkersRequest::default()).await?;
            Ok(Some(()))
        })
        .await
    }

    /// Starts a worker of this name, attached to the first coordinator.
    pub fn start_worker(&mut self, name: &str, threads: u32) -> Result<()> {
        self.start_worker_at(name, threads, 0)
    }

    /// Starts a worker attached to coordinator number `at`.
    pub fn start_worker_at(&mut self, name: &str, threads: u32, at: usize) -> Result<()> {
        self.start_worker_in(name, threads, at, &[])
    }

    /// Starts a worker with these variables in its environment.
    pub fn start_worker_with(&mut self, name: &str, threads: u32, env: &[(&str, &str)]) -> Result<()> {
        self.start_worker_in(name, threads, 0, env)
    }

    fn start_worker_in(&mut self, name: &str, threads: u32, at: usize, env: &[(&str, &str)]) -> Result<()> {
        let home = self.home(name)?;
        let process = Process::start(
            name,
            Command::new(program("lorafleet-worker")?)
                .current_dir(&home)
                .env("HOME", &home)
                .envs(self.env.clone())
                .envs(env.iter().copied())
                .args(["--coordinator", &self.url(at), "--name", name])
                .args(["--threads", &threads.to_string()])
                .args(["--collective-listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0"])
                .args(["--metrics-listen", "127.0.0.1:0"])
                .arg("--cache-dir")
                .arg(home.join("cache")),
            self.dir.path(),
        )?;
        self.workers.insert(name.into(), process);
        Ok(())
    }

    /// A worker by its name.
    pub fn worker(&mut self, name: &str) -> Result<&mut Process> {
        self.workers.get_mut(name).with_context(|| format!("no worker {name}"))
    }

    /// URL of coordinator number `at`.
    pub fn url(&self, at: usize) -> String {
        format!("http://127.0.0.1:{}", self.ports[at])
    }

    /// A connection to the first coordinator.
    pub async fn channel(&self) -> Result<Channel> {
        Ok(Endpoint::from_shared(self.url(0))?.connect().await?)
    }

    /// A client of the first coordinator.
    pub async fn jobs(&self) -> Result<JobsClient<Channel>> {
        Ok(JobsClient::new(self.channel().await?))
    }

    /// Runs the command line from a directory of its own, against the first coordinator.
    pub fn cli(&self, args: &[&str]) -> Result<Output> {
        let home = self.home("client")?;
        Command::new(program("lorafleet")?)
            .current_dir(&home)
            .env("HOME", &home)
            .env("LORAFLEET_COORDINATOR", self.url(0))
            .args(args)
            .output()
            .context("run lorafleet")
    }

    /// Runs the command line, expects success, and reads its JSON.
    pub fn cli_json(&self, args: &[&str]) -> Result<Value> {
        let output = self.cli(args)?;
        if !output.status.success() {
            bail!("lorafleet {args:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Submits a job through the command line; returns its name.
    pub fn submit(&self, job: &JobFile) -> Result<String> {
        self.submit_file(&job.write(&self.home("client")?.join(job.name))?)
    }

    /// Submits a job file through the command line; returns the job's name.
    pub fn submit_file(&self, path: &Path) -> Result<String> {
        let answer = self.cli_json(&["submit", &path.display().to_string(), "--json"])?;
        Ok(answer["name"].as_str().context("no name in the answer of submit")?.to_string())
    }

    /// The job as it stands.
    pub async fn job(&self, name: &str) -> Result<pb::Job> {
        Ok(self.jobs().await?.get_job(pb::GetJobRequest { name: name.into() }).await?.into_inner())
    }

    /// Waits until the job has ended.
    pub async fn ended(&self, name: &str) -> Result<pb::Job> {
        self.job_when(name, "it to end", |job| job.state() as i32 >= pb::JobState::Succeeded as i32).await
    }

    /// Waits until the job has succeeded; an error with its message when it ends otherwise.
    pub async fn succeeded(&self, name: &str) -> Result<pb::Job> {
        let job = self.ended(name).await?;
        if job.state() != pb::JobState::Succeeded {
            bail!(
                "{name} is {}: {}\n{}",
                job.state().as_str_name(),
                job.state_message,
                self.history(name).await?
            );
        }
        Ok(job)
    }

    /// Waits until the job looks as asked.
    pub async fn job_when(&self, name: &str, what: &str, is: impl Fn(&pb::Job) -> bool) -> Result<pb::Job> {
        let waited = until(&format!("{name}: {what}"), PATIENCE, || async {
            let job = self.job(name).await?;
            Ok(is(&job).then_some(job))
        })
        .await;
        match waited {
            Ok(job) => Ok(job),
            Err(error) => bail!("{error:#}\n{}", self.history(name).await?),
        }
    }

    /// The job's events, oldest first.
    pub async fn events(&self, name: &str) -> Result<Vec<pb::JobEvent>> {
        let request = pb::ListEventsRequest { parent: name.into(), page_size: 1000, ..Default::default() };
        Ok(self.jobs().await?.list_events(request).await?.into_inner().events)
    }

    /// The job's points, in order of steps.
    pub async fn points(&self, name: &str) -> Result<Vec<pb::MetricPoint>> {
        let request =
            pb::ListMetricPointsRequest { parent: name.into(), page_size: 1000, ..Default::default() };
        Ok(self.jobs().await?.list_metric_points(request).await?.into_inner().points)
    }

    /// The job's attempts, first to last.
    pub async fn attempts(&self, name: &str) -> Result<Vec<pb::Attempt>> {
        let request = pb::ListAttemptsRequest { parent: name.into(), page_size: 1000, ..Default::default() };
        Ok(self.jobs().await?.list_attempts(request).await?.into_inner().attempts)
    }

    /// Downloads the job's adapter through the command line; returns the folder and the sha256 of its weights.
    pub fn adapter(&self, name: &str) -> Result<(PathBuf, String)> {
        self.download(name, "adapter_model.safetensors")
    }

    /// Downloads the job's result through the command line; returns the folder and the sha256 of one of its files.
    pub fn download(&self, name: &str, file: &str) -> Result<(PathBuf, String)> {
        let to = self.dir.path().join(format!("adapter-{}", name.replace('/', "-")));
        let output = self.cli(&["download", name, &to.display().to_string()])?;
        if !output.status.success() {
            bail!("download: {}", String::from_utf8_lossy(&output.stderr));
        }
        let bytes = std::fs::read(to.join(file))?;
        let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        Ok((to, digest))
    }

    /// An existing directory below the fleet's own, for one process.
    pub fn home(&self, name: &str) -> Result<PathBuf> {
        let home = self.dir.path().join("homes").join(name);
        std::fs::create_dir_all(&home)?;
        Ok(home)
    }

    /// What happened to the job, for messages.
    pub async fn history(&self, name: &str) -> Result<String> {
        let job = self.job(name).await?;
        let mut text =
            format!("{name}: {} at step {}: {}\n", job.state().as_str_name(), job.step, job.state_message);
        for event in self.events(name).await? {
            text += &format!("  {} {} {}\n", event.number, event.kind, event.message);
        }
        Ok(text)
    }
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
