//! `cargo xtask bench NAME`: a measurement beside its peer and its target, printed and written down.

mod checkpoint;
mod classification;
mod decision;
mod engine;
mod instruct;
mod peer;
mod quality;
mod queue;
mod record;
mod recovery;
mod row;
mod service;
mod smollm2;
mod trial;

use std::process::ExitCode;

use clap::ValueEnum;

pub use self::peer::last_json;
use self::row::Row;
use crate::prerequisites;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to measure.
    name: Bench,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Only print: leave docs/benchmarks.md as it is.
    #[arg(long)]
    dry: bool,
    #[command(flatten)]
    queue: queue::Sizes,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Bench {
    /// Tokens a second of the trainer, beside transformers with PEFT.
    Engine,
    /// Evaluation loss of the example's adapter after 42 steps, beside transformers with PEFT.
    Quality,
    /// Accuracy of LoRA beside full fine-tuning, on a real encoder.
    Classification,
    /// Evaluation losses of a real instruct model, beside transformers with PEFT.
    Instruct,
    /// What writing checkpoints beside training costs the steps.
    Checkpoint,
    /// Memory of an idle coordinator, and the time from submitting a job to its first step.
    Service,
    /// How long a gang stands still when a member dies, and how soon a newcomer trains.
    Recovery,
    /// Time of one scheduling decision with 100,000 queued jobs and 10,000 workers.
    Decision,
    /// Jobs a second through the queue, submissions, assignments, heartbeats; beside other queues on Postgres.
    Queue,
}

impl Bench {
    fn name(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Quality => "quality",
            Self::Classification => "classification",
            Self::Instruct => "instruct",
            Self::Checkpoint => "checkpoint",
            Self::Service => "service",
            Self::Recovery => "recovery",
            Self::Decision => "decision",
            Self::Queue => "queue",
        }
    }
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let load = record::load();
    let rows = match args.name {
        Bench::Engine => engine::run()?,
        Bench::Quality => quality::run()?,
        Bench::Classification => {
            prerequisites::postgres()?;
            classification::run()?
        }
        Bench::Instruct => {
            prerequisites::postgres()?;
            instruct::run()?
        }
        Bench::Checkpoint => checkpoint::run()?,
        Bench::Service => {
            prerequisites::postgres()?;
            service::run()?
        }
        Bench::Recovery => {
            prerequisites::postgres()?;
            recovery::run()?
        }
        Bench::Decision => decision::run()?,
        Bench::Queue => {
            prerequisites::postgres()?;
            queue::run(&args.queue)?
        }
    };
    if args.json {
        println!("{:#}", serde_json::Value::from_iter(rows.iter().map(Row::to_json)));
    } else {
        println!("{}", row::table(&rows));
    }
    if !args.dry {
        record::append(args.name.name(), &rows, load)?;
    }
    // A target that was missed is a result, not an error of the measurement.
    Ok(ExitCode::SUCCESS)
}
