//! The service around the trainer: what an idle coordinator costs, and how soon a job's first step is done.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::row::{Row, Target};
use crate::{
    fleet::{self, Fleet},
    workspace::{root, target},
};

/// The coordinator is left alone for this long before its memory is read.
const IDLE: Duration = Duration::from_secs(5);

pub fn run() -> anyhow::Result<Vec<Row>> {
    fleet::build()?;
    let folder = target().join("bench");
    let fleet = Fleet::start(&folder.join("fleet"), 2)?;
    thread::sleep(IDLE);
    let idle = resident_bytes(fleet.pid("coordinator")?)?;
    let job = |seed| job_file(&folder, seed);
    let first = first_step(&fleet, &job(0)?)?;
    let second = first_step(&fleet, &job(1)?)?;
    let busy = resident_bytes(fleet.pid("coordinator")?)?;
    fleet.stop()?;
    let row = |name: &str, ours: f64, target| Row { name: name.to_owned(), ours, peer: None, target };
    Ok(vec![
        row("idle coordinator, resident MB", idle / 1e6, Target::Below(50.0)),
        row("coordinator after two jobs, resident MB", busy / 1e6, Target::None),
        row("submit to first step on two new workers, s", first, Target::None),
        row("submit to first step, base loaded, s", second, Target::Below(2.0)),
    ])
}

/// A short job on the example's base; without evaluation, which would be measured too.
fn job_file(folder: &Path, seed: u32) -> anyhow::Result<PathBuf> {
    let path = folder.join(format!("job-{seed}.yaml"));
    let examples = root().join("examples");
    let text = format!(
        "name: bench\nbase: {base:?}\ndata: {{train: {train:?}}}\ntrain: {{steps: 4, seed: {seed}, max_length: 256}}\n\
         workers: {{min: 2, max: 2}}\n",
        base = examples.join("base"),
        train = examples.join("games/train.jsonl"),
    );
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Seconds from starting `lorafleet submit` to the report of the job's first step; then waits for its end.
fn first_step(fleet: &Fleet, job: &Path) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut submit = fleet
        .lorafleet()
        .arg("submit")
        .arg(job)
        .args(["--watch", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start `lorafleet submit`")?;
    let mut first = None;
    for line in BufReader::new(submit.stdout.take().context("no standard output")?).lines() {
        let update: Value = serde_json::from_str(&line.context("cannot read the updates")?)?;
        // 64-bit numbers are strings in protobuf's JSON.
        let step = update["point"]["step"].as_str().and_then(|step| step.parse::<u64>().ok());
        if first.is_none() && step.is_some_and(|step| step > 0) {
            first = Some(start.elapsed().as_secs_f64());
        }
    }
    let status = submit.wait().context("cannot wait for `lorafleet submit`")?;
    if !status.success() {
        bail!("the job of {} did not succeed", job.display());
    }
    first.context("the job ended without a step")
}

/// Resident memory of a process.
fn resident_bytes(pid: u64) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}: this bench needs Linux"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .with_context(|| format!("no VmRSS in {path}"))?;
    let kib: f64 =
        line.trim().trim_end_matches("kB").trim().parse().with_context(|| format!("VmRSS is {line:?}"))?;
    Ok(1024.0 * kib)
}
