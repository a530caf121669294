//! `lorafleet workers`: who is in the fleet, what each has and what it does.

use lorafleet::{pb, short_id};

use super::{Exit, Fleet, output};
use crate::show::{Table, age, bytes, worker_state_name};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also those that are gone.
    #[arg(long)]
    all: bool,
    /// Print JSON: all of them.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let workers = fleet.connect().await?.list_workers().await?;
    if args.json {
        output::json(&pb::ListWorkersResponse { workers, ..Default::default() })?;
        return Ok(Exit::Done);
    }
    let (gone, live): (Vec<_>, Vec<_>) =
        workers.into_iter().partition(|worker| worker.state() == pb::WorkerState::Gone);
    let hidden = if args.all { 0 } else { gone.len() };
    let shown = if args.all { [live, gone].concat() } else { live };
    if shown.is_empty() {
        eprintln!("no worker is in the fleet now");
    } else {
        output::line(&table(&shown).to_string())?;
    }
    if hidden > 0 {
        eprintln!("{hidden} more {} gone: --all shows them", if hidden == 1 { "is" } else { "are" });
    }
    Ok(Exit::Done)
}

fn table(workers: &[pb::Worker]) -> Table {
    let mut table = Table::new(&["WORKER", "STATE", "DEVICE", ">THREADS", ">MEMORY", ">SINCE", "JOBS"]);
    for worker in workers {
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
    table
}
