//! `lorafleet sweep show|watch SWEEP`: its jobs in a table, their losses in a plot, and the best of them.

use std::time::Duration;

use lorafleet::{Client, is_over, pb, sweep_name};

use super::{Exit, Fleet, output};
use crate::show::{describe_sweep, sweep_line};

/// A sweep is asked for this often while it is followed.
const POLL: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The sweep: its id, or sweeps/ID.
    sweep: String,
    /// Print JSON; `watch`: the sweep on a line whenever it changed.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let name = sweep_name(&args.sweep)?;
    let client = fleet.connect().await?;
    let children = client.list_sweep_children(&name).await?;
    if args.json {
        output::json(&pb::ListSweepChildrenResponse { children, ..Default::default() })?;
    } else {
        output::line(&describe_sweep(&client.get_sweep(&name).await?, &children))?;
    }
    Ok(Exit::Done)
}

pub async fn watch(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let name = sweep_name(&args.sweep)?;
    follow(&fleet.connect().await?, &name, args.json).await
}

/// Follows a sweep to its end, and tells how it ended.
pub async fn follow(client: &Client, name: &str, json: bool) -> anyhow::Result<Exit> {
    let mut last = None;
    let sweep = loop {
        let sweep = client.get_sweep(name).await?;
        if last.as_ref() != Some(&sweep) {
            if json {
                output::json_line(&sweep)?;
            } else {
                eprintln!("  {}", sweep_line(&sweep));
            }
        }
        if is_over(&sweep) {
            break sweep;
        }
        last = Some(sweep);
        tokio::time::sleep(POLL).await;
    };
    if !json {
        output::line(&describe_sweep(&sweep, &client.list_sweep_children(name).await?))?;
    }
    Ok(match sweep.state() {
        pb::SweepState::Succeeded => Exit::Done,
        _ => Exit::JobNotSucceeded,
    })
}
