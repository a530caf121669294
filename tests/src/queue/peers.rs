//! Other queues on the same Postgres: their scripts run, their figures read.

use std::{path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use lorafleet_postgres::Postgres;
use serde_json::Value;
use tokio::process::Command;

use super::throughput::Rates;

/// Runs `program script URL JOBS CLIENTS` on a fresh database.
///
/// # Errors
/// When it fails, or prints no figures.
pub async fn run(
    postgres: &Postgres,
    program: &Path,
    script: &Path,
    (jobs, clients): (usize, usize),
) -> Result<Rates> {
    let mut command = Command::new(program);
    command.arg(script).arg(postgres.fresh_database()?).args([jobs.to_string(), clients.to_string()]);
    let output = command.stderr(Stdio::inherit()).output().await;
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(output.status.success(), "{} failed: {}", script.display(), output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let figures = text.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
    let figures = figures.with_context(|| format!("{} printed no figures", script.display()))?;
    let figure = |name: &str| figures[name].as_f64().with_context(|| format!("no {name}"));
    Ok(Rates { jobs_per_s: figure("jobs_per_s")?, submitted_per_s: figure("submitted_per_s")? })
}
