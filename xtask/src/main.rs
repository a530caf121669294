//! The project's own commands: `cargo xtask demo`, `test`, `bench`, `simulate`, `chaos` and `sqlx`.

mod bench;
mod chaos;
mod command;
mod counts;
mod curve;
mod demo;
mod fleet;
mod prerequisites;
mod simulate;
mod sqlx;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The project's own commands.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build everything, run a fleet on this machine, train the example's adapter on two workers, and stop it all.
    Demo(demo::Args),
    /// Format, lint, build and test everything; the last line counts the tests.
    Test(test::Args),
    /// Measure something and write it down in docs/benchmarks.md.
    Bench(bench::Args),
    /// Simulate a week of a large fleet by the scheduler and by simple rules, for docs/scheduling.md.
    Simulate(simulate::Args),
    /// Break fleets on purpose, by a seed, and check what their jobs come to.
    Chaos(chaos::Args),
    /// Check every query against the schema and renew .sqlx.
    Sqlx(sqlx::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Chaos(args) => chaos::run(&args),
        Command::Sqlx(args) => sqlx::run(&args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
