//! `lorafleet logs JOB`: a job's history.

use lorafleet::{Update, job_name, pb};

use super::{Exit, Fleet, output};
use crate::show::event_line;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job: its id, or jobs/ID.
    job: String,
    /// Go on until the job has ended.
    #[arg(long, short)]
    follow: bool,
    /// Print JSON, one event a line.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let name = job_name(&args.job)?;
    let client = fleet.connect().await?;
    if !args.follow {
        for event in client.list_events(&name).await? {
            print(&event, args.json)?;
        }
        return Ok(Exit::Done);
    }
    let mut watch = client.watch(&name, 0, 0);
    while let Some(update) = watch.next().await? {
        if let Update::Event(event) = update {
            print(&event, args.json)?;
        }
    }
    Ok(Exit::Done)
}

fn print(event: &pb::JobEvent, json: bool) -> anyhow::Result<()> {
    if json { output::json_line(event) } else { output::line(&event_line(event)) }
}
