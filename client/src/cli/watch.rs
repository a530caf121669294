//! `lorafleet watch JOB`: follows a job until it ends.

use lorafleet::job_name;

use super::{
    Exit, Fleet,
    follow::{FollowArgs, follow},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job: its id, or jobs/ID.
    job: String,
    #[command(flatten)]
    follow: FollowArgs,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let name = job_name(&args.job)?;
    follow(&fleet.connect().await?, &name, &args.follow).await
}
