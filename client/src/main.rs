//! The `lorafleet` command: submits jobs to a fleet, follows them, fetches adapters, and runs a fleet on this machine.

use std::process::ExitCode;

use clap::Parser as _;

mod cli;
mod show;
mod up;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    init_tracing();
    // One thread drives everything: children that must die with us are tied to the thread that started them.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return cli::Exit::Internal.into();
        }
    };
    let outcome = runtime.block_on(cli::run(cli));
    // A reader thread that is stuck on a file must not keep a finished command.
    runtime.shutdown_background();
    match outcome {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            cli::Exit::of(&error).into()
        }
    }
}

/// `RUST_LOG=lorafleet=debug` shows what is tried again and why; silent otherwise.
fn init_tracing() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
