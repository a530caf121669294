//! `lorafleet resume JOB`: puts a paused job back into the queue.

use lorafleet::job_name;

use super::{Exit, Fleet, output};
use crate::show::state_line;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job: its id, or jobs/ID.
    job: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let job = fleet.connect().await?.resume_job(&job_name(&args.job)?).await?;
    output::answer(args.json, &job, || state_line(&job))
}
