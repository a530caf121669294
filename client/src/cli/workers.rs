//! `lorafleet workers`: who is in the fleet, what each has and what it does.

use lorafleet::{pb, short_id};

use super::{Exit, Fleet, output};
use crate::show::{Table, age, bytes, worker_state_name};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let workers = fleet.connect().await?.list_workers().await?;
    if args.json {
        output::json(&pb::ListWorkersResponse { workers, ..Default::default() })?;
        return Ok(Exit::Done);
    }
    if workers.is_empty() {
        eprintln!("no worker has registered yet");
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&["WORKER", "STATE", "DEVICE", ">THREADS", ">MEMORY", ">SINCE", "JOBS"]);
    for worker in &workers {
        let resources = worker.resources.clone().unwrap_or_default();
        let jobs: Vec<_> = worker.jobs.iter().map(|job| short_id(job)).collect();
        table.row(vec![
            short_id(&worker.name).to_owned(),
            worker_state_name(worker.state()).to_owned(),
            resources.device,
            resources.threads.to_string(),
            bytes(resources.memory_bytes),
            age(worker.register_time.as_ref()),
            jobs.join(" "),
        ]);
    }
    output::line(&table.to_string())?;
    Ok(Exit::Done)
}
