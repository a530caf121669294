//! `lorafleet merge`: writes a base with an adapter merged into it, as a plain Hugging Face folder.

use std::path::PathBuf;

use super::{Exit, Fleet, folders};

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
    let model = folders::find(&args.adapter, args.base.as_deref(), fleet).await?;
    if model.adapter.is_none() {
        return Err(folders::mistake("ADAPTER_DIR", "is a whole model: nothing is to be merged").into());
    }
    let mut command = model.worker("merge")?;
    command.arg("--out").arg(&args.out);
    if let Some(dtype) = &args.dtype {
        command.args(["--dtype", dtype]);
    }
    folders::run(&mut command)
}
