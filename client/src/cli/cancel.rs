//! `lorafleet cancel JOB`: ends a job that has not ended.

use lorafleet::job_name;

use super::{Exit, Fleet, output};
use crate::show::state_name;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job: its id, or jobs/ID.
    job: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let job = fleet.connect().await?.cancel_job(&job_name(&args.job)?).await?;
    output::answer(args.json, &job, || format!("{} is {}", job.name, state_name(job.state())))
}
