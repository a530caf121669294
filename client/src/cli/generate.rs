//! `lorafleet generate`: answers a prompt with a job's adapter, or one on this machine.

use std::path::PathBuf;

use super::{Exit, Fleet, folders};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A job (its id, or jobs/ID), or the folder of an adapter or of a whole model.
    #[arg(value_name = "JOB|ADAPTER_DIR")]
    adapter: String,
    /// What to answer.
    #[arg(long)]
    prompt: String,
    /// The base's folder or hub id; needed for an adapter's folder unless that names one. A job knows its own.
    #[arg(long, value_name = "DIR|ID")]
    base: Option<PathBuf>,
    /// Tokens of the answer at most.
    #[arg(long, default_value_t = 128, value_name = "N")]
    max_new_tokens: u32,
    /// 0: always the likeliest token; above, the more random.
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temperature: f64,
    /// Draw from the likeliest tokens that have this probability together.
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f64,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON: prompt and answer.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, fleet: &Fleet) -> anyhow::Result<Exit> {
    let model = folders::find(&args.adapter, args.base.as_deref(), fleet).await?;
    let mut command = model.worker("generate")?;
    command.args(["--prompt", &args.prompt]);
    command.args(["--max-new-tokens", &args.max_new_tokens.to_string()]);
    command.args(["--temperature", &args.temperature.to_string(), "--top-p", &args.top_p.to_string()]);
    command.args(["--seed", &args.seed.to_string()]);
    if args.json {
        command.arg("--json");
    }
    folders::run(&mut command)
}
