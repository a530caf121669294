//! `cargo xtask chaos`: faults drawn from a seed, done to fleets of real processes.

use std::{
    ffi::OsString,
    process::{Command, ExitCode},
};

use crate::{
    command::succeeds,
    fleet, prerequisites,
    workspace::{binary, root},
};

/// The options are those of `lorafleet-chaos suite`, which says them when asked for `--help`.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
    options: Vec<OsString>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    prerequisites::postgres()?;
    fleet::build()?;
    let mut command = Command::new(binary("lorafleet-chaos"));
    command.arg("suite").args(&args.options).current_dir(root());
    Ok(if succeeds(&mut command)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
