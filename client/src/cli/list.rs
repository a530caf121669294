//! `lorafleet list`: jobs, newest first.

use clap::ValueEnum;
use lorafleet::{pb, short_id};

use super::{Exit, Fleet, output};
use crate::show::{Table, age, number, state_name};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only jobs in these states.
    #[arg(long, value_delimiter = ',', value_name = "STATES")]
    state: Vec<State>,
    /// Only jobs of this tenant.
    #[arg(long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    tenant: String,
    /// At most this many.
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    Queued,
    Running,
    Paused,
    Succeeded,
    Failed,
    Cancelled,
}

impl From<State> for pb::JobState {
    fn from(state: State) -> Self {
        match state {
            State::Queued => Self::Queued,
            State::Running => Self::Running,
            State::Paused => Self::Paused,
            State::Succeeded => Self::Succeeded,
            State::Failed => Self::Failed,
            State::Cancelled => Self::Cancelled,
        }
    }
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let states: Vec<pb::JobState> = args.state.iter().map(|&state| state.into()).collect();
    let jobs = fleet.connect().await?.list_jobs(&states, &args.tenant, args.limit).await?;
    let answer = pb::ListJobsResponse { jobs, ..Default::default() };
    let mut columns = vec!["JOB", "NAME", "STATE", ">STEP", ">LOSS", ">WORKERS", ">AGE"];
    let in_sweeps = answer.jobs.iter().any(|job| !job.sweep.is_empty());
    columns.extend(in_sweeps.then_some("SWEEP"));
    let mut table = Table::new(&columns);
    for job in &answer.jobs {
        let mut cells = row(job);
        cells.extend(in_sweeps.then(|| short_id(&job.sweep).to_owned()));
        table.row(cells);
    }
    let of_all = args.state.is_empty() && args.tenant.is_empty();
    let nothing = if of_all { "no jobs; start one with `lorafleet submit FILE`" } else { "no jobs" };
    output::list(args.json, &answer, nothing, &table)
}

fn row(job: &pb::Job) -> Vec<String> {
    let name = job.spec.as_ref().map_or("", |spec| spec.display_name.as_str());
    let steps = match job.total_steps {
        0 => number(job.step),
        total => format!("{}/{}", number(job.step), number(total)),
    };
    let loss = job
        .latest
        .as_ref()
        .filter(|point| point.step > 0)
        .map_or(String::new(), |p| format!("{:.4}", p.loss));
    let workers = if job.world_size > 0 { job.world_size.to_string() } else { String::new() };
    vec![
        short_id(&job.name).to_owned(),
        name.to_owned(),
        state_name(job.state()).to_owned(),
        steps,
        loss,
        workers,
        age(job.create_time.as_ref()),
    ]
}
