//! `cargo xtask demo`: a real adapter, trained by a real fleet, from one command.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::{
    curve::Curve,
    fleet, prerequisites,
    workspace::{root, target},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Workers of the fleet; the example's job takes two.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=64))]
    workers: u16,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    prerequisites::postgres()?;
    eprintln!("building the three binaries (the first time takes several minutes)");
    fleet::build()?;
    let start = Instant::now();
    let demo = target().join("demo");
    let adapter = demo.join("adapter");
    if adapter.exists() {
        fs::remove_dir_all(&adapter).with_context(|| format!("cannot empty {}", adapter.display()))?;
    }
    let fleet = fleet::Fleet::start(&demo.join("fleet"), args.workers)?;
    let job = root().join("examples/games.yaml");
    eprintln!("\nsubmitting {}", job.display());
    // Its progress is shown as it comes; what the job came to is kept until all else has been said.
    let submit = fleet
        .lorafleet()
        .arg("submit")
        .arg(&job)
        .args(["--watch", "--download"])
        .arg(&adapter)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start `lorafleet submit`")?;
    let curve = if submit.status.success() { Some(curve(&fleet, &demo.join("loss.svg"))?) } else { None };
    fleet.stop()?;
    let summary = String::from_utf8_lossy(&submit.stdout);
    println!("\n{}", summary.trim_end());
    let Some(curve) = curve else {
        bail!("the demo's job did not succeed; logs are in {}", demo.join("fleet/logs").display());
    };
    println!("  loss curve      {}", curve.display());
    eprintln!("\nthe demo took {} s after the build; nothing is left running", start.elapsed().as_secs());
    Ok(ExitCode::SUCCESS)
}

/// Draws the loss of the fleet's one job.
fn curve(fleet: &fleet::Fleet, path: &Path) -> anyhow::Result<PathBuf> {
    let read = |args: &[&str]| -> anyhow::Result<String> {
        let output = fleet.lorafleet().args(args).stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "`lorafleet {}` failed", args.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    };
    let list: Value = serde_json::from_str(&read(&["list", "--json"])?)?;
    let job = list["jobs"][0]["name"].as_str().context("the fleet lists no job")?.to_owned();
    Curve::of_updates(&read(&["watch", &job, "--json"])?)?.draw("examples/games.yaml", path)?;
    Ok(path.to_owned())
}
