//! Which programs make a local fleet, with which arguments.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;

use super::{Args, child::Program, data_dir::DataDir, ports::Ports};
use crate::cli::DEFAULT_PORT;

/// Workers that are told to stop finish a step and write a checkpoint within this time, or give up.
pub const WORKER_DRAIN_LIMIT: Duration = Duration::from_secs(120);

/// The programs of a local fleet. Every listener is on the loopback interface.
#[derive(Debug)]
pub struct Plan {
    /// The coordinator.
    pub coordinator: Program,
    /// The workers.
    pub workers: Vec<Program>,
    ports: Ports,
    threads: u16,
}

impl Plan {
    /// Writes the command lines.
    ///
    /// # Errors
    /// When a binary is not beside this one.
    pub fn new(args: &Args, ports: Ports, dir: &DataDir, database_url: String) -> anyhow::Result<Self> {
        let Ports { api: port, metrics: metrics_port } = ports;
        let local = |port: u16| format!("127.0.0.1:{port}");
        let coordinator = Program {
            name: "coordinator".to_owned(),
            binary: sibling("lorafleet-coordinator")?,
            args: strings(&[
                "--listen",
                &local(port),
                "--metrics-listen",
                &local(metrics_port),
                "--store",
                &dir.store_url()?,
            ]),
            // Not an argument: those are shown to every user of the machine.
            env: vec![("LORAFLEET_DATABASE_URL".to_owned(), database_url)],
            log: dir.rotate_log("coordinator")?,
        };
        let binary = sibling("lorafleet-worker")?;
        let (url, threads) = (format!("http://{}", local(port)), args.threads());
        let (cache, drain) = (dir.worker_cache(), format!("{}s", WORKER_DRAIN_LIMIT.as_secs()));
        let worker = |index: u16| -> anyhow::Result<Program> {
            let name = format!("worker-{index}");
            let any = local(0);
            let mut args =
                strings(&["--coordinator", &url, "--name", &name, "--threads", &threads.to_string()]);
            args.extend(strings(&["--listen", &any, "--metrics-listen", &any, "--health-listen", &any]));
            args.extend(strings(&["--drain-limit", &drain, "--cache-dir"]));
            args.push(cache.to_str().context("the data folder's path is not UTF-8")?.to_owned());
            Ok(Program { args, log: dir.rotate_log(&name)?, name, binary: binary.clone(), env: Vec::new() })
        };
        let workers = (0..args.workers).map(worker).collect::<anyhow::Result<_>>()?;
        Ok(Self { coordinator, workers, ports, threads })
    }

    /// Where clients reach the coordinator.
    pub fn coordinator_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.api)
    }

    /// What is running, for people.
    pub fn banner(&self, dir: &DataDir) -> String {
        let names: Vec<_> = self.workers.iter().map(|worker| worker.name.as_str()).collect();
        let threads = if self.threads == 1 {
            "1 thread each".to_owned()
        } else {
            format!("{} threads each", self.threads)
        };
        let option = match self.ports.api {
            DEFAULT_PORT => String::new(),
            _ => format!(" --coordinator {}", self.coordinator_url()),
        };
        let data = dir.path().display();
        format!(
            "lorafleet is up
  coordinator  {} (metrics: http://127.0.0.1:{}/metrics)
  workers      {} ({threads})
  database     a private Postgres on a Unix socket, in {data}/postgres
  store        {data}/store
  logs         {data}/logs
start a job with: lorafleet{option} submit FILE --watch
stop with Ctrl-C; jobs go on when it is started again",
            self.coordinator_url(),
            self.ports.metrics,
            names.join(", "),
        )
    }
}

/// A binary of the project, which lies beside this one.
///
/// # Errors
/// When it does not.
pub fn sibling(name: &str) -> anyhow::Result<PathBuf> {
    let us = std::env::current_exe().context("this program cannot find itself")?;
    let path = us.with_file_name(name);
    if path.is_file() {
        return Ok(path);
    }
    anyhow::bail!(
        "{name} is not beside {}: install it there, or build all three with `cargo build --workspace --bins`",
        us.display()
    )
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}
