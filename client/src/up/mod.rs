//! `lorafleet up`: a whole fleet on this machine, in the foreground, gone when it is stopped.

mod args;
mod child;
mod data_dir;
mod health;
mod ports;
mod services;
mod supervisor;

use anyhow::Context as _;
use lorafleet_postgres::{Options, Postgres};

pub use args::Args;

pub use services::sibling;

use self::{data_dir::DataDir, ports::Ports, services::Plan, supervisor::Supervisor};
use crate::cli::Exit;

/// The database of the coordinator in the private Postgres.
const DATABASE: &str = "lorafleet";

/// Runs the fleet until it is told to stop.
pub async fn run(args: Args) -> anyhow::Result<Exit> {
    let stop = supervisor::stop_signals(args.until_stdin_closes)?;
    let dir = DataDir::open(&args.data_dir()?)?;
    let ports = Ports::choose(args.port)?;
    eprintln!("starting a fleet in {}", dir.path().display());
    // Blocks this thread, the only one that may start it: the kernel ties a child to the thread that started it.
    let mut postgres =
        Postgres::start(&dir.postgres(), Options::default()).context("the database did not start")?;
    postgres.createdb(DATABASE).context("the database could not be prepared")?;
    let plan = Plan::new(&args, ports, &dir, postgres.url(DATABASE))?;
    let outcome = Supervisor::new(plan, &dir, stop).run().await;
    let stopped = postgres.stop().context("the database did not stop by itself");
    dir.clear_state()?;
    outcome.and(stopped)?;
    eprintln!("everything has stopped; `lorafleet up` on the same folder goes on where this ended");
    Ok(Exit::Done)
}
