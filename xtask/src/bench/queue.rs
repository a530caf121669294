//! The queue: jobs and submissions a second, time to an assignment, heartbeats, history; beside other queues on Postgres.

mod peers;

use std::process::Command;

use anyhow::Context as _;
use serde_json::Value;

use super::{
    peer::last_json,
    row::{Row, Target},
};
use crate::{command::output, fleet, workspace::binary};

/// Sizes, for whoever has more or less time.
#[derive(Debug, Clone, clap::Args)]
pub struct Sizes {
    /// queue: finished jobs in history.
    #[arg(long, default_value_t = 1_000_000, value_name = "JOBS")]
    history: u64,
    /// queue: only figures whose name begins so: throughput, submit, assign, beats, history or restart.
    #[arg(long, value_name = "FIGURE")]
    only: Option<String>,
    /// queue: jobs of the runs.
    #[arg(long, default_value_t = 2000, value_name = "JOBS")]
    jobs: usize,
    /// queue: times that the throughput run is made, ours and the peers' in turns; the medians count.
    #[arg(long, default_value_t = 3, value_name = "TIMES")]
    rounds: usize,
    /// queue: the database's files in memory (/dev/shm), for ours and peers, so that the disk's moods are left out.
    #[arg(long)]
    memory: bool,
    /// queue: instead of measuring once, run jobs for so long and watch dead rows and the write-ahead log.
    #[arg(long, value_name = "MINUTES")]
    soak: Option<f64>,
}

pub fn run(sizes: &Sizes) -> anyhow::Result<Vec<Row>> {
    fleet::build()?;
    let mut command = Command::new(binary("lorafleet-queue"));
    if sizes.memory {
        command.env("TMPDIR", "/dev/shm");
    }
    if let Some(minutes) = sizes.soak {
        return soak(command, minutes);
    }
    command.args(["measure", "--history", &sizes.history.to_string()]);
    command.args(["--jobs", &sizes.jobs.to_string(), "--rounds", &sizes.rounds.to_string()]);
    if let Some(only) = &sizes.only {
        command.args(["--only", only]);
    }
    if sizes.only.as_deref().is_none_or(|only| only.starts_with("throughput")) {
        for peer in peers::install()? {
            command.args(["--peer", &peer]);
        }
    }
    let text = output(&mut command)?;
    let figures = last_json(&text).context("lorafleet-queue printed no figures")?;
    rows(&figures, if sizes.memory { "memory" } else { "a disk" })
}

/// The figures that there are, as rows; `place` is where the database's files lay.
fn rows(figures: &Value, place: &str) -> anyhow::Result<Vec<Row>> {
    let figure = |name: &str| figures[name].as_f64();
    let rate = |name: &str| figures[name]["jobs_per_s"].as_f64();
    let mut rows = Vec::new();
    let mut add = |name: &str, ours: Option<f64>, peer: Option<f64>, target| {
        rows.extend(ours.map(|ours| Row { name: name.to_owned(), ours, peer, target }));
    };
    let flush = figure("flush_s").map(|seconds| seconds * 1000.0);
    add(&format!("one flush of 8 KiB to {place}, ms, median"), flush, None, Target::None);
    for (peer, title, target) in [
        ("pg_boss", "pg-boss, 100 at once", Target::TimesPeer(1.0)),
        ("pg_boss_single", "pg-boss, one at a time", Target::TimesPeer(1.0)),
        ("procrastinate", "procrastinate", Target::TimesPeer(1.0)),
        ("graphile_worker", "graphile-worker", Target::None),
    ] {
        let name = format!("jobs/s, submit to success, 32 clients; beside {title}");
        add(&name, rate("throughput"), rate(&format!("throughput_{peer}")), target);
    }
    add("submissions/s, 1 client", figure("submit_1"), None, Target::AtLeast(500.0));
    add("submissions/s, 32 clients", figure("submit_32"), None, Target::AtLeast(3000.0));
    add("submit to assignment, idle fleet, median, s", figure("assign_median_s"), None, Target::None);
    add("submit to assignment, idle fleet, p99, s", figure("assign_p99_s"), None, Target::AtMost(0.05));
    add("coordinator's cores, 5,000 workers' heartbeats", figure("beats_cores"), None, Target::Below(0.5));
    add("the same of its sessions in Postgres", figure("beats_postgres_cores"), None, Target::None);
    add("leases missed meanwhile", figure("beats_missed"), None, Target::AtMost(0.0));
    if let Some(jobs) = figures["history_jobs"].as_u64() {
        let name = format!("assignment with {jobs} finished jobs, s; beside none");
        let (with, without) = (figure("history_with_s"), figure("history_without_s"));
        add(&name, with, without, Target::AtMostTimesPeer(1.5));
    }
    let mut add = |name: &str, ours: Option<f64>, target| {
        rows.extend(ours.map(|ours| Row { name: name.to_owned(), ours, peer: None, target }));
    };
    let succeeded = figure("restart_succeeded").map(|part| part * 100.0);
    add("accepted jobs that succeed, Postgres restarted in the midst, %", succeeded, Target::AtLeast(100.0));
    add("server's return to the next job's end, s", figure("restart_resumed_s"), Target::None);
    anyhow::ensure!(!rows.is_empty(), "nothing was measured: {figures}");
    Ok(rows)
}

/// Shows the soak's lines as they come; its first and last third as rows.
fn soak(mut command: Command, minutes: f64) -> anyhow::Result<Vec<Row>> {
    let text = output(command.args(["soak", "--minutes", &minutes.to_string()]))?;
    let lines: Vec<Value> =
        serde_json::from_str(text.trim()).context("lorafleet-queue printed no lines of a soak")?;
    let third = lines.len().div_ceil(3);
    let mean = |lines: &[Value], value: &dyn Fn(&Value) -> f64| {
        lines.iter().map(value).sum::<f64>() / lines.len().max(1) as f64
    };
    let (first, last) = (&lines[..third], &lines[lines.len() - third..]);
    let row = |name: &str, value: &dyn Fn(&Value) -> f64| Row {
        name: format!("{name}, last third of {minutes} min; beside the first"),
        ours: mean(last, value),
        peer: Some(mean(first, value)),
        target: Target::None,
    };
    let number = |name: &'static str| move |line: &Value| line[name].as_f64().unwrap_or(f64::NAN);
    let dead = |line: &Value| {
        let tables = line["dead_tuples"].as_object();
        tables.map_or(0.0, |tables| tables.values().filter_map(Value::as_f64).sum())
    };
    Ok(vec![
        row("soak: jobs/s", &number("jobs_per_s")),
        row("soak: WAL bytes a job", &number("wal_bytes_per_job")),
        row("soak: dead tuples", &dead),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_not_measured_has_no_row() {
        let figures = json!({
            "throughput": {"jobs_per_s": 300.0}, "throughput_pg_boss": {"jobs_per_s": 200.0}, "submit_1": 700.0,
        });
        let rows = rows(&figures, "a disk").unwrap();
        let met: Vec<_> = rows.iter().map(Row::met).collect();
        assert_eq!(met, [Some(true), None, None, None, Some(true)], "{rows:?}");
        assert!(super::rows(&json!({}), "a disk").is_err());
    }
}
