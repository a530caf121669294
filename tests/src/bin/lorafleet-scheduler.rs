//! What `cargo xtask bench decision` and `cargo xtask simulate` run: the scheduler without anything around it.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use lorafleet_coordinator::scheduler::Times;
use lorafleet_tests::scheduler::{
    decision::{Plan, measure},
    simulation::{Size, simulate},
};

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
    /// Simulates a fleet under a load, by the scheduler and by two simple rules; prints JSON.
    Simulate {
        /// Days.
        #[arg(long, default_value_t = 7.0)]
        days: f64,
        /// Workers.
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
        workers: u64,
        /// Worker-seconds asked for, as a part of what the fleet has.
        #[arg(long, default_value_t = 0.9)]
        load: f64,
        /// What everything is drawn from.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Seconds between two decisions at least.
        #[arg(long, default_value_t = 15.0)]
        interval: f64,
    },
}

fn main() -> Result<()> {
    let times = Times::usual(Duration::from_millis(300));
    match Cli::parse().command {
        Command::Decision { jobs, workers, decisions } => {
            let plan = Plan { jobs, workers, decisions };
            println!("{}", measure(plan, times, &mut |line| eprintln!("{line}")));
        }
        Command::Simulate { days, workers, load, seed, interval } => {
            ensure!(
                days > 0.0 && load > 0.0 && interval >= 1.0,
                "days and load are above 0, the interval at least 1"
            );
            let size = Size { days, workers: usize::try_from(workers)?, load, seed };
            println!("{}", simulate(size, interval, times, &mut |line| eprintln!("{line}")));
        }
    }
    Ok(())
}
