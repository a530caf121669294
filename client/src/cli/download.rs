//! `lorafleet download JOB DIR`: a job's adapter, as a PEFT folder, or its model, as a Hugging Face one.

use std::path::PathBuf;

use lorafleet::{checkpoint_name, job_name};
use serde_json::json;

use super::{Exit, Fleet, follow::checkpoint_of, output, transfer};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job: its id, or jobs/ID.
    job: String,
    /// Where the files of the adapter or model go; made if it is not there.
    dir: PathBuf,
    /// Another checkpoint than the job's result, or its latest while it runs (see `lorafleet checkpoints`).
    #[arg(long, value_name = "ID")]
    checkpoint: Option<String>,
    /// Every file of the checkpoint, the optimizer's state too.
    #[arg(long)]
    all: bool,
    /// Print JSON: the checkpoint, the folder and the files.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let job = job_name(&args.job)?;
    let wanted = args.checkpoint.as_deref().map(|typed| checkpoint_name(&job, typed)).transpose()?;
    let client = fleet.connect().await?;
    let checkpoint = checkpoint_of(&client, &job, wanted.as_deref()).await?;
    let files = client.download_checkpoint(&checkpoint, &args.dir, args.all, &transfer::by_name()).await?;
    if args.json {
        output::json(&json!({ "checkpoint": checkpoint, "dir": args.dir, "files": files }))?;
        return Ok(Exit::Done);
    }
    if !checkpoint.r#final {
        eprintln!("note: {job} has not ended; this is what it has after step {}", checkpoint.step);
    }
    output::line(&format!("{}: {}", args.dir.display(), files.join(", ")))?;
    Ok(Exit::Done)
}
