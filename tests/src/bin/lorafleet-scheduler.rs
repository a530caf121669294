//! What `cargo xtask bench decision` and `cargo xtask simulate` run: the scheduler without anything around it.

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use lorafleet_coordinator::scheduler::Times;
use lorafleet_tests::scheduler::decision::{Plan, measure};

#[derive(Debug, Parser)]
#[command(name = "lorafleet-scheduler", about = "Measures the scheduler.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures how long a decision takes; prints JSON.
    Decision {
        /// Jobs in the queue.
        #[arg(long, default_value_t = 100_000)]
        jobs: usize,
        /// Workers in the fleet.
        #[arg(long, default_value_t = 10_000)]
        workers: usize,
        /// Decisions of each case.
        #[arg(long, default_value_t = 21)]
        decisions: u64,
    },
}

fn main() -> Result<()> {
    let times = Times::usual(Duration::from_millis(300));
    match Cli::parse().command {
        Command::Decision { jobs, workers, decisions } => {
            let plan = Plan { jobs, workers, decisions };
            println!("{}", measure(plan, times, &mut |line| eprintln!("{line}")));
        }
    }
    Ok(())
}
