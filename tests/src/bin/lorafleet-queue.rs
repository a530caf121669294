//! What `cargo xtask bench queue` runs: figures of the queue, or a soak, as JSON.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use lorafleet_tests::queue::{
    figures::{Plan, measure},
    rig,
    soak::soak,
};

#[derive(Debug, Parser)]
#[command(name = "lorafleet-queue", about = "Measures the queue.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures everything once.
    Measure {
        /// Jobs of the throughput run.
        #[arg(long, default_value_t = 2000)]
        jobs: usize,
        /// Clients at once in it.
        #[arg(long, default_value_t = 32)]
        clients: usize,
        /// Workers in it.
        #[arg(long, default_value_t = 200)]
        workers: usize,
        /// Workers that only send heartbeats.
        #[arg(long, default_value_t = 5000)]
        idle_workers: usize,
        /// Finished jobs in history.
        #[arg(long, default_value_t = 1_000_000)]
        history: u64,
        /// A queue to measure beside ours: `NAME=PROGRAM,SCRIPT`; may be repeated.
        #[arg(long, value_name = "NAME=PROGRAM,SCRIPT", value_parser = peer)]
        peer: Vec<(String, PathBuf, PathBuf)>,
        /// Times that the throughput run is made, ours and the peers' in turns.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Only figures whose name begins so: throughput, submit, assign, beats, history or restart.
        #[arg(long)]
        only: Option<String>,
    },
    /// Runs jobs for some time and watches dead rows and the write-ahead log.
    Soak {
        /// How long.
        #[arg(long, default_value_t = 30.0)]
        minutes: f64,
    },
}

fn peer(text: &str) -> Result<(String, PathBuf, PathBuf), String> {
    let (name, rest) = text.split_once('=').ok_or("has no `=`")?;
    let (program, script) = rest.split_once(',').ok_or("has no `,`")?;
    Ok((name.to_owned(), program.into(), script.into()))
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Measure { jobs, clients, workers, idle_workers, history, peer, rounds, only } => {
            let plan = Plan { jobs, clients, workers, idle_workers, history, peers: peer, rounds, only };
            let figures = measure(&plan, &mut |line| eprintln!("{line}")).await?;
            println!("{figures}");
        }
        Command::Soak { minutes } => {
            let time = Duration::try_from_secs_f64(minutes * 60.0).context("--minutes")?;
            let every = (time / 30).max(Duration::from_secs(10));
            let postgres = rig::postgres()?;
            let lines = soak(&postgres, time, every, &mut |line| eprintln!("{line}")).await?;
            println!("{}", serde_json::Value::from(lines));
        }
    }
    Ok(())
}
