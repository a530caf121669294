//! `cargo xtask chaos`: faults drawn from a seed, done to fleets of real processes.

use std::process::{Command, ExitCode};

use crate::{
    command::succeeds,
    fleet, prerequisites,
    workspace::{binary, root},
};

#[derive(Debug, clap::Args)]
pub struct Args {
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
    #[arg(long, value_name = "KIND,…")]
    only: Option<String>,
    /// Plant a defect: fence-off, deal-twice, broadcast-in-place or forget-step-count; succeeds when it is found.
    #[arg(long, value_name = "NAME")]
    defect: Option<String>,
    /// Go on after a violation.
    #[arg(long)]
    go_on: bool,
    /// Print the tally as JSON.
    #[arg(long)]
    json: bool,
    /// Add the tally to docs/reliability.md.
    #[arg(long)]
    record: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    prerequisites::postgres()?;
    fleet::build()?;
    let mut command = Command::new(binary("lorafleet-chaos"));
    command.args(["suite", "--minutes", &args.minutes.to_string(), "--runs", &args.runs.to_string()]);
    let options = [
        ("--seed", args.seed.map(|seed| seed.to_string())),
        ("--only", args.only.clone()),
        ("--defect", args.defect.clone()),
    ];
    for (name, value) in options {
        command.args(value.map(|value| [name.to_owned(), value]).into_iter().flatten());
    }
    command.args([("--go-on", args.go_on), ("--json", args.json)].iter().filter(|f| f.1).map(|f| f.0));
    if args.record {
        command.arg("--record").arg(root().join("docs/reliability.md"));
    }
    Ok(if succeeds(&mut command)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
