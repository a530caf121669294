//! `lorafleet classify`: labels of texts, by a job's classifier, or one on this machine.

use std::{path::PathBuf, process::Command};

use anyhow::Context as _;

use super::{
    Exit, Fleet,
    folders::{self, Model},
};
use crate::up::sibling;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A job (its id, or jobs/ID), or the folder of an adapter or of a whole model.
    #[arg(value_name = "JOB|ADAPTER_DIR")]
    adapter: String,
    /// A text; may be given several times.
    #[arg(long, required = true)]
    text: Vec<String>,
    /// The second text of each pair.
    #[arg(long)]
    second: Option<String>,
    /// The base's folder; needed for an adapter's folder unless that names one. A job knows its own.
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Print a line of JSON for each text: its label, and the probability of each.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let worker = sibling("lorafleet-worker")?;
    let Model { base, adapter } = folders::find(&args.adapter, args.base.as_deref(), fleet).await?;
    let mut command = Command::new(&worker);
    command.arg("classify").arg("--base").arg(base);
    if let Some(adapter) = adapter {
        command.arg("--adapter").arg(adapter);
    }
    for text in &args.text {
        command.args(["--text", text]);
    }
    if let Some(second) = &args.second {
        command.args(["--second", second]);
    }
    if args.json {
        command.arg("--json");
    }
    let status = command.status().with_context(|| format!("cannot start {}", worker.display()))?;
    Ok(if status.success() { Exit::Done } else { Exit::Internal })
}
