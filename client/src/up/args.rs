//! What `lorafleet up` can be told.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::cli::DEFAULT_PORT;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where database, store and logs are kept; started again on it, jobs go on
    /// [default: ~/.local/share/lorafleet]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// How many CPU workers.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: u16,
    /// Threads of each worker [default: this machine's cores divided by the workers]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Where the coordinator listens, on this machine only; 0: any free port.
    #[arg(long, default_value_t = DEFAULT_PORT, value_name = "PORT")]
    pub port: u16,
    /// Stop when standard input ends, so that a program that started this cannot leave it behind.
    #[arg(long, hide = true)]
    pub until_stdin_closes: bool,
}

impl Args {
    /// The folder that everything is kept in.
    ///
    /// # Errors
    /// When none was given and there is no home.
    pub fn data_dir(&self) -> anyhow::Result<PathBuf> {
        if let Some(dir) = &self.data_dir {
            return Ok(dir.clone());
        }
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let share = set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")));
        Ok(share.context("no home folder to keep data in: give --data-dir DIR")?.join("lorafleet"))
    }

    /// Threads of each worker.
    pub fn threads(&self) -> u16 {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let share = u16::try_from(cores / usize::from(self.workers)).unwrap_or(u16::MAX);
        self.threads.unwrap_or(share).max(1)
    }
}
