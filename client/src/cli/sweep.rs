//! `lorafleet sweep …`: many jobs of one file, submitted, looked at, followed and cancelled together.

mod show;
mod submit;

use lorafleet::{short_id, sweep_name};

use super::{Exit, Fleet, output};
use crate::show::{Table, age, sweep_state_name};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Upload a sweep file's base and data once, and start all of its jobs.
    Submit(submit::Args),
    /// List sweeps, newest first.
    List(ListArgs),
    /// Show a sweep's jobs, their evaluation losses, and the best of them.
    Show(show::Args),
    /// Follow a sweep until all of its jobs have ended.
    Watch(show::Args),
    /// End every job of a sweep that has not ended.
    Cancel(CancelArgs),
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// At most this many.
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct CancelArgs {
    /// The sweep: its id, or sweeps/ID.
    sweep: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    match args.command {
        Command::Submit(args) => submit::run(args, fleet).await,
        Command::List(args) => list(args, fleet).await,
        Command::Show(args) => show::run(args, fleet).await,
        Command::Watch(args) => show::watch(args, fleet).await,
        Command::Cancel(args) => cancel(args, fleet).await,
    }
}

async fn list(args: ListArgs, fleet: &Fleet) -> anyhow::Result<Exit> {
    let sweeps = fleet.connect().await?.list_sweeps(args.limit).await?;
    let answer = lorafleet::pb::ListSweepsResponse { sweeps, ..Default::default() };
    let mut table = Table::new(&["SWEEP", "NAME", "STATE", ">JOBS", ">ENDED", ">BEST EVAL", ">AGE"]);
    for sweep in &answer.sweeps {
        let ended = sweep.succeeded + sweep.failed + sweep.cancelled;
        let best = sweep.best.as_ref().and_then(|best| best.evaluations.last());
        table.row(vec![
            short_id(&sweep.name).to_owned(),
            sweep.spec.as_ref().map_or(String::new(), |spec| spec.display_name.clone()),
            sweep_state_name(sweep.state()).to_owned(),
            sweep.children.to_string(),
            ended.to_string(),
            best.map_or(String::new(), |evaluation| format!("{:.4}", evaluation.loss)),
            age(sweep.create_time.as_ref()),
        ]);
    }
    output::list(args.json, &answer, "no sweeps; start one with `lorafleet sweep submit FILE`", &table)
}

async fn cancel(args: CancelArgs, fleet: &Fleet) -> anyhow::Result<Exit> {
    let sweep = fleet.connect().await?.cancel_sweep(&sweep_name(&args.sweep)?).await?;
    output::answer(args.json, &sweep, || format!("{} is {}", sweep.name, sweep_state_name(sweep.state())))
}
