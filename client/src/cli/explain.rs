//! `lorafleet explain JOB`: in one sentence why a job does not run, what it does, or how it ended.

use lorafleet::job_name;

use super::{Exit, Fleet, output};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job: its id, or jobs/ID.
    job: String,
    /// Print JSON: also its place in the queue, the seconds until it may start, and the jobs that it waits for.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let name = job_name(&args.job)?;
    let told = fleet.connect().await?.explain_job(&name).await?;
    output::answer(args.json, &told, || format!("{name} {}", told.explanation))
}
