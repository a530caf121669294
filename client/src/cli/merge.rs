//! `lorafleet merge`: writes a base with an adapter merged into it, as a plain Hugging Face folder.

use std::{path::PathBuf, process::Command};

use anyhow::Context as _;

use super::{
    Exit, Fleet,
    folders::{self, Model},
};
use crate::up::sibling;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A job (its id, or jobs/ID), or the folder of an adapter.
    #[arg(value_name = "JOB|ADAPTER_DIR")]
    adapter: String,
    /// The folder to write; it must not exist.
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// The base's folder or hub id; needed for an adapter's folder unless that names one. A job knows its own.
    #[arg(long, value_name = "DIR|ID")]
    base: Option<PathBuf>,
    /// Number type of all weights. Default: each keeps its own.
    #[arg(long, value_name = "TYPE", value_parser = ["f32", "f16", "bf16"])]
    dtype: Option<String>,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let worker = sibling("lorafleet-worker")?;
    let Model { base, adapter } = folders::find(&args.adapter, args.base.as_deref(), fleet).await?;
    let adapter = adapter
        .ok_or_else(|| folders::mistake("ADAPTER_DIR", "is a whole model: nothing is to be merged"))?;
    let mut command = Command::new(&worker);
    command.arg("merge").arg("--base").arg(base).arg("--adapter").arg(adapter).arg("--out").arg(&args.out);
    if let Some(dtype) = &args.dtype {
        command.args(["--dtype", dtype]);
    }
    let status = command.status().with_context(|| format!("cannot start {}", worker.display()))?;
    Ok(if status.success() { Exit::Done } else { Exit::Internal })
}
