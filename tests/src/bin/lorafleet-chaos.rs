//! What `cargo xtask chaos` and `cargo xtask bench recovery` run: the fault suite, and the time that a recovery takes.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use lorafleet_tests::chaos::{
    defect::Defect,
    kind::Kind,
    plan::USUAL_FAULTS,
    recovery, suite,
    suite::{Machine, Options},
    tally::Tally,
};

/// Of each kind of fault, the tally is to have so many that had an effect.
const WANTED: u64 = 20;

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
    /// A run has at most so many faults; above the default its job is longer.
    #[arg(long, default_value_t = USUAL_FAULTS)]
    faults: u64,
    /// Plants a defect (fence-off, deal-twice, broadcast-in-place or forget-step-count); succeeds when the suite finds it.
    #[arg(long)]
    defect: Option<Defect>,
    /// Go on after a violation.
    #[arg(long)]
    go_on: bool,
    /// Print the tally as JSON.
    #[arg(long)]
    json: bool,
    /// With a defect: the same seeds and faults, and no defect. Succeeds when nothing is found.
    #[arg(long, requires = "defect")]
    control: bool,
    /// Adds the tally to the table of docs/reliability.md or another Markdown file. Without --only, faults are drawn of
    /// the kinds that the table has too few of.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "docs/reliability.md")]
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
    let only = match &args.record {
        Some(file) if args.only.is_empty() => rare(file)?,
        _ => args.only.clone(),
    };
    if args.record.is_some() {
        let names: Vec<String> = only.iter().map(Kind::to_string).collect();
        eprintln!(
            "faults of: {} (again: --faults {} --only {})",
            names.join(", "),
            args.faults,
            names.join(",")
        );
    }
    let options = Options {
        seed: args.seed.unwrap_or(clock),
        time: Duration::try_from_secs_f64(args.minutes * 60.0).context("--minutes")?,
        runs: args.runs,
        only,
        faults: args.faults,
        defect: args.defect,
        planted: !args.control,
        stop_at_violation: !args.go_on,
    };
    let mut note = |tally: &Tally| match &args.record {
        Some(file) if args.defect.is_none() || args.control => record(file, tally),
        _ => Ok(()),
    };
    let tally = suite::suite(&options, &mut |line| eprintln!("{line}"), &mut note).await?;
    if args.json {
        println!("{:#}", tally.to_json());
    } else {
        println!("{}", tally.table());
    }
    if let Some(defect) = args.defect.filter(|_| !args.control) {
        let found = tally.violations > 0;
        println!("the planted defect {defect} was {}found", if found { "" } else { "NOT " });
        return Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if let Some(file) = &args.record {
        eprintln!("written down in {}", file.display());
    }
    Ok(if tally.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The kinds that this machine allows and the file's table has too few of; all that it allows when there are none.
fn rare(file: &Path) -> Result<Vec<Kind>> {
    let (_lock, text) = locked(file).with_context(|| file.display().to_string())?;
    let machine = Machine::look();
    let all: Vec<Kind> = Kind::all().into_iter().filter(|kind| machine.allows(*kind)).collect();
    let rare = Tally::read(&text).unwrap_or_default().rare(&all, WANTED);
    Ok(if rare.is_empty() { all } else { rare })
}

/// Adds the tally to the file's table, which ends the file; what stands before it stays. Several suites may do so at once.
fn record(file: &Path, tally: &Tally) -> Result<()> {
    const TABLE: &str = "\njobs: ";
    let (_lock, text) = locked(file).with_context(|| file.display().to_string())?;
    let at = text
        .find(TABLE)
        .with_context(|| format!("{} has no line that begins with \"jobs: \"", file.display()))?
        + 1;
    let (before, table) = text.split_at(at);
    let mut all = Tally::read(table).unwrap_or_default();
    all.merge(tally);
    std::fs::write(file, format!("{before}{}", all.table())).with_context(|| file.display().to_string())
}

/// The file's text, and a lock on it for as long as what is returned lives.
fn locked(file: &Path) -> std::io::Result<(File, String)> {
    let lock = File::open(file)?;
    lock.lock()?;
    Ok((lock, std::fs::read_to_string(file)?))
}
