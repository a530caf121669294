//! `lorafleet get JOB`: one job, and why it waits or how it ended.

use lorafleet::job_name;

use super::{Exit, Fleet, output};
use crate::show::describe_job;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job: its id, or jobs/ID.
    job: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let name = job_name(&args.job)?;
    let client = fleet.connect().await?;
    let job = client.get_job(&name).await?;
    if args.json {
        output::json(&job)?;
    } else {
        output::line(&describe_job(&job, &client.list_attempts(&name).await?))?;
    }
    Ok(Exit::Done)
}
