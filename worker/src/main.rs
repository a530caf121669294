//! `lorafleet-worker`: serves as a worker until SIGTERM or Ctrl-C, or computes once.

use anyhow::Context as _;
use clap::Parser as _;
use lorafleet_worker::{
    classify,
    config::{Cli, Command},
    generate, logits, merge, serve,
};

/// Threads for the network and the store; training has its own.
const IO_THREADS: usize = 2;

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match &cli.command {
        Some(Command::Generate(args)) => return generate::run(args),
        Some(Command::Classify(args)) => return classify::run(args),
        Some(Command::Logits(args)) => return logits::run(args),
        Some(Command::Merge(args)) => return merge::run(args),
        None => {}
    }
    let args = cli.serve;
    args.check().map_err(anyhow::Error::msg)?;
    lorafleet_telemetry::init("lorafleet-worker", args.log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(IO_THREADS)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(serve::serve(&args));
    // A run that did not end in time must not keep the process.
    runtime.shutdown_background();
    result
}
