//! The command line: what can be asked, and where each question is answered.

mod cancel;
mod checkpoints;
mod classify;
mod download;
mod exit;
mod explain;
mod folders;
mod follow;
mod generate;
mod get;
mod list;
mod logs;
mod merge;
mod output;
mod pause;
mod resume;
mod submit;
mod sweep;
mod tenant;
mod token;
mod transfer;
mod usage;
mod validate;
mod watch;
mod workers;

use clap::{Parser, Subcommand};
use lorafleet::{Client, ClientError};

pub use exit::Exit;

/// Where `lorafleet up` listens unless told otherwise, and where every other command looks.
pub const DEFAULT_PORT: u16 = 7400;

/// Fine-tunes language models with LoRA on a fleet of workers.
#[derive(Debug, Parser)]
#[command(name = "lorafleet", version, after_help = exit::HELP, propagate_version = true)]
pub struct Cli {
    /// Where the coordinator is.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "LORAFLEET_COORDINATOR",
        default_value_t = format!("http://127.0.0.1:{DEFAULT_PORT}")
    )]
    coordinator: String,
    /// The token to show it, where it asks for one.
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "LORAFLEET_TOKEN",
        hide_env_values = true,
        default_value = "",
        hide_default_value = true
    )]
    token: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole fleet on this machine: database, coordinator and workers.
    Up(crate::up::Args),
    /// Upload a job file's base and data, and start the job.
    Submit(submit::Args),
    /// List jobs, newest first.
    List(list::Args),
    /// Show one job.
    Get(get::Args),
    /// Follow a job until it ends.
    Watch(watch::Args),
    /// End a job that has not ended.
    Cancel(cancel::Args),
    /// Take a job off its workers, with a checkpoint, until it is resumed.
    Pause(pause::Args),
    /// Put a paused job back into the queue.
    Resume(resume::Args),
    /// Say why a job does not run and what it waits for.
    Explain(explain::Args),
    /// Show a job's history.
    Logs(logs::Args),
    /// List a job's checkpoints.
    Checkpoints(checkpoints::Args),
    /// Fetch a job's adapter, as a PEFT folder; after full fine-tuning its model, as a Hugging Face folder.
    Download(download::Args),
    /// Many jobs of one file that differ in a few fields.
    Sweep(sweep::Args),
    /// Whose jobs are whose, and what each may use.
    Tenant(tenant::Args),
    /// What lets callers speak for a tenant.
    Token(token::Args),
    /// List the fleet's workers.
    Workers(workers::Args),
    /// Say who used how much of the fleet.
    Usage(usage::Args),
    /// Say what is wrong with a job file, its base and its data, without a fleet.
    Validate(validate::Args),
    /// Answer a prompt with a trained adapter.
    Generate(generate::Args),
    /// Write a base with an adapter merged into it, for any program that reads Hugging Face folders.
    Merge(merge::Args),
    /// Say what label a text has, with a trained classifier.
    Classify(classify::Args),
}

/// Does what the command line asks.
///
/// # Errors
/// Whatever keeps it from being done; [`Exit::of`] knows what that means to a script.
pub async fn run(cli: Cli) -> anyhow::Result<Exit> {
    let fleet = Fleet { url: cli.coordinator, token: cli.token };
    match cli.command {
        Command::Up(args) => crate::up::run(args).await,
        Command::Submit(args) => submit::run(args, &fleet).await,
        Command::List(args) => list::run(args, &fleet).await,
        Command::Get(args) => get::run(args, &fleet).await,
        Command::Watch(args) => watch::run(args, &fleet).await,
        Command::Cancel(args) => cancel::run(args, &fleet).await,
        Command::Pause(args) => pause::run(args, &fleet).await,
        Command::Resume(args) => resume::run(args, &fleet).await,
        Command::Explain(args) => explain::run(args, &fleet).await,
        Command::Logs(args) => logs::run(args, &fleet).await,
        Command::Checkpoints(args) => checkpoints::run(args, &fleet).await,
        Command::Download(args) => download::run(args, &fleet).await,
        Command::Sweep(args) => sweep::run(args, &fleet).await,
        Command::Tenant(args) => tenant::run(args, &fleet).await,
        Command::Token(args) => token::run(args, &fleet).await,
        Command::Workers(args) => workers::run(args, &fleet).await,
        Command::Usage(args) => usage::run(args, &fleet).await,
        Command::Validate(args) => validate::run(&args),
        Command::Generate(args) => generate::run(args, &fleet).await,
        Command::Merge(args) => merge::run(args, &fleet).await,
        Command::Classify(args) => classify::run(args, &fleet).await,
    }
}

/// The fleet that commands speak to.
pub struct Fleet {
    url: String,
    token: String,
}

impl Fleet {
    /// Connects to its coordinator.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect(&self) -> Result<Client, ClientError> {
        Client::connect_with_token(&self.url, &self.token).await
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

    /// clap would take the value of one for the other, and say nothing.
    #[test]
    fn no_command_has_an_argument_by_the_name_of_a_global_one() {
        fn check(command: &clap::Command, globals: &[&str]) {
            for argument in command.get_arguments() {
                let id = argument.get_id().as_str();
                assert!(!globals.contains(&id), "`{}` has its own `{id}`", command.get_name());
            }
            command.get_subcommands().for_each(|command| check(command, globals));
        }
        let cli = Cli::command();
        let globals: Vec<&str> =
            cli.get_arguments().filter(|a| a.is_global_set()).map(|a| a.get_id().as_str()).collect();
        assert!(globals.contains(&"token"), "{globals:?}");
        cli.get_subcommands().for_each(|command| check(command, &globals));
    }
}
