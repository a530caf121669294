//! `lorafleet classify`: labels of texts, by a job's classifier, or one on this machine.

use std::path::PathBuf;

use super::{Exit, Fleet, folders};

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
    let model = folders::find(&args.adapter, args.base.as_deref(), fleet).await?;
    let mut command = model.worker("classify")?;
    for text in &args.text {
        command.args(["--text", text]);
    }
    if let Some(second) = &args.second {
        command.args(["--second", second]);
    }
    if args.json {
        command.arg("--json");
    }
    folders::run(&mut command)
}
