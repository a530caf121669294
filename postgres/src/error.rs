//! What can go wrong while a private Postgres is found, initialized, started or stopped.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

/// Why a private Postgres is not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No folder holds both `postgres` and `initdb`.
    #[error(
        "PostgreSQL's server programs `postgres` and `initdb` were not found (looked in {}); install them: \
         `apt-get install postgresql` on Debian and Ubuntu, `dnf install postgresql-server` on Fedora, \
         `brew install postgresql` on macOS",
        searched.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    Missing {
        /// Folders that were looked into, in order.
        searched: Vec<PathBuf>,
    },
    /// The folder's server belongs to another live process.
    #[error("{}: the Postgres in this folder is in use by another process; stop that one, or choose another folder", dir.display())]
    InUse {
        /// The folder given to [`crate::Postgres::start`].
        dir: PathBuf,
    },
    /// A file operation failed.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// What was tried, as in "cannot …".
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// One of PostgreSQL's programs said no.
    #[error("`{program}` failed ({status}): {output}")]
    Program {
        /// Which program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed.
        output: String,
    },
    /// The server ended while it was starting.
    #[error("Postgres ended while starting ({status}); the end of {}:\n{tail}", log.display())]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// Its log file.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// The server did not get where it should in time.
    #[error("Postgres did not {action} within {} s; the end of {}:\n{tail}", limit.as_secs(), log.display())]
    Timeout {
        /// "accept connections" or "stop".
        action: &'static str,
        /// How long was waited.
        limit: Duration,
        /// Its log file.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
}

impl Error {
    /// For `map_err`: an I/O error with its place and purpose.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    }
}
