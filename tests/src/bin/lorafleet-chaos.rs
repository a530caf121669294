//! What `cargo xtask chaos` and `cargo xtask bench recovery` run: the fault suite, and the time that a recovery takes.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use lorafleet_tests::chaos::{defect::Defect, kind::Kind, recovery, suite, suite::Options, tally::Tally};

#[derive(Debug, Parser)]
#[command(name = "lorafleet-chaos", about = "Breaks fleets on purpose.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Draws faults from a seed and checks what jobs come to.
    Suite(SuiteArgs),
    /// Measures recoveries and prints them as JSON.
    Recovery {
        /// How many kills.
        #[arg(long, default_value_t = 20)]
        kills: usize,
        /// How many silent deaths.
        #[arg(long, default_value_t = 3)]
        freezes: usize,
    },
}

#[derive(Debug, clap::Args)]
struct SuiteArgs {
    /// Seed of the first run; each next one has the next seed. Default: by the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// No run begins after this time.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// At most so many runs; 0: as many as there is time for.
    #[arg(long, default_value_t = 0)]
    runs: u64,
    /// Only these kinds of faults, with commas between.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Plants a defect; succeeds when the suite finds it.
    #[arg(long)]
    defect: Option<Defect>,
    /// Go on after a violation.
    #[arg(long)]
    go_on: bool,
    /// Print the tally as JSON.
    #[arg(long)]
    json: bool,
    /// Adds the tally to the table of this Markdown file.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Suite(args) => suite_of(args).await,
        Command::Recovery { kills, freezes } => {
            let times = recovery::measure(kills, freezes, &mut |line| eprintln!("{line}")).await?;
            println!("{:#}", times.to_json());
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn suite_of(args: SuiteArgs) -> Result<ExitCode> {
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let options = Options {
        seed: args.seed.unwrap_or(clock),
        time: Duration::try_from_secs_f64(args.minutes * 60.0).context("--minutes")?,
        runs: args.runs,
        only: args.only,
        defect: args.defect,
        stop_at_violation: !args.go_on,
    };
    let tally = suite::suite(&options, &mut |line| eprintln!("{line}")).await?;
    if args.json {
        println!("{:#}", tally.to_json());
    } else {
        println!("{}", tally.table());
    }
    if let Some(defect) = args.defect {
        let found = tally.violations > 0;
        println!("the planted defect {defect} was {}found", if found { "" } else { "NOT " });
        return Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if let Some(file) = args.record {
        record(&file, &tally)?;
    }
    Ok(if tally.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Adds the tally to what the file's last section says.
fn record(file: &std::path::Path, tally: &Tally) -> Result<()> {
    const HEAD: &str = "## Tally\n";
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let (before, after) =
        text.split_once(HEAD).with_context(|| format!("{} has no {HEAD:?}", file.display()))?;
    let mut all = Tally::read(after).unwrap_or_default();
    all.merge(tally);
    std::fs::write(file, format!("{before}{HEAD}\n{}", all.table()))?;
    eprintln!("written down in {}", file.display());
    Ok(())
}
