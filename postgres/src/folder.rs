//! The folder of one private Postgres: its data, socket, log, and the lock that keeps others out.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::account::Account;
use crate::process::Foreign;
use crate::{Error, Result};

/// Where data goes when the server's account cannot reach the folder that was asked for, as below `/root`.
const RELOCATED: &str = "/var/lib/lorafleet";
/// A Unix socket's path has at most 108 bytes with its final zero on Linux, 104 on macOS.
const SOCKET_PATH_MAX: usize = 103;
/// The last lines of a log that go into an error.
const TAIL_LINES: usize = 12;
/// How long an earlier run's server may take to stop by itself.
const ORPHAN_LIMIT: Duration = Duration::from_secs(30);
/// The port's number is only part of the socket's name.
pub(crate) const PORT: u16 = 5432;

/// The folder, open and locked.
#[derive(Debug)]
pub(crate) struct Folder {
    dir: PathBuf,
    place: PathBuf,
    socket: PathBuf,
    _short_socket: Option<tempfile::TempDir>,
    _lock: File,
}

impl Folder {
    /// Makes the folder if need be and takes its lock.
    ///
    /// # Errors
    /// [`Error::InUse`] while another process has it.
    pub(crate) fn open(dir: &Path, account: Account) -> Result<Folder> {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let dir = dir.canonicalize().map_err(Error::io("resolve", dir))?;
        let lock = lock(&dir.join("lock"))?.ok_or_else(|| Error::InUse { dir: dir.clone() })?;
        let place = if account.reaches(&dir) { dir.clone() } else { relocated(&dir)? };
        let (socket, _short_socket) = socket_folder(&place)?;
        account.own(&socket)?;
        Ok(Folder { dir, place, socket, _short_socket, _lock: lock })
    }

    /// The folder that was asked for.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// PostgreSQL's data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.place.join("data")
    }

    /// The folder of the Unix socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The server's log.
    pub(crate) fn log(&self) -> PathBuf {
        self.place.join("postgres.log")
    }

    /// The last lines of the log.
    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// Whether the server with this process id accepts connections.
    pub(crate) fn is_ready(&self, id: u32) -> bool {
        // Line 1 is the process id, line 8 the status; what pg_ctl reads, too.
        let text = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let mut lines = text.lines().map(str::trim);
        lines.next() == Some(&id.to_string()) && lines.nth(6) == Some("ready")
    }

    /// Ends the server that a killed earlier run left behind, and removes its pid file when the number now belongs to
    /// somebody else. Holding the lock, we know that nobody wants that server any more.
    pub(crate) fn end_orphan(&self) -> Result<()> {
        let file = self.data().join("postmaster.pid");
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let Some(orphan) = text.lines().next().and_then(|id| Foreign::find(id.trim().parse().ok()?)) else {
            return Ok(()); // none, or a stale file that Postgres itself sees through
        };
        let remove = || std::fs::remove_file(&file).map_err(Error::io("remove", &file));
        match orphan.working_directory() {
            _ if orphan.is_zombie() => remove(),
            Some(at) if at == self.data() => {
                tracing::info!(dir = %self.dir.display(), "stopping the Postgres that an earlier run left behind");
                let stopped = orphan
                    .stop(Signal::INT, ORPHAN_LIMIT)
                    .and_then(
                        |stopped| if stopped { Ok(true) } else { orphan.stop(Signal::QUIT, ORPHAN_LIMIT) },
                    )
                    .map_err(Error::io("stop the server of", &self.data()))?;
                if stopped { Ok(()) } else { Err(Error::InUse { dir: self.dir.clone() }) }
            }
            // Another process got the number, say after a restart of the container: Postgres would refuse to start.
            Some(_) => remove(),
            None => Ok(()),
        }
    }
}

/// Takes an exclusive lock on a file, made if need be; nothing when another process has it.
pub(crate) fn lock(path: &Path) -> Result<Option<File>> {
    let file = open_lock(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(Error::io("lock", path)(source)),
    }
}

/// As [`lock`], but waits for it.
pub(crate) fn lock_waiting(path: &Path) -> Result<File> {
    let file = open_lock(path)?;
    file.lock().map_err(Error::io("lock", path))?;
    Ok(file)
}

fn open_lock(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true);
    options.open(path).map_err(Error::io("open", path))
}

/// The place outside `dir` that belongs to it, remembered in `dir/relocated`.
fn relocated(dir: &Path) -> Result<PathBuf> {
    let note = dir.join("relocated");
    if let Ok(text) = std::fs::read_to_string(&note) {
        let place = PathBuf::from(text.trim());
        if place.is_dir() {
            return Ok(place);
        }
    }
    let root = Path::new(RELOCATED);
    std::fs::create_dir_all(root).map_err(Error::io("create", root))?;
    let place = tempfile::Builder::new().prefix("postgres-").tempdir_in(root);
    let place = place.map_err(Error::io("create a folder in", root))?.keep();
    std::fs::set_permissions(&place, Permissions::from_mode(0o755)).map_err(Error::io("chmod", &place))?;
    let write = || File::create(&note)?.write_all(place.as_os_str().as_encoded_bytes());
    write().map_err(Error::io("write", &note))?;
    tracing::info!(
        asked = %dir.display(), place = %place.display(),
        "Postgres must not run as root and no other account can reach the folder: its files go elsewhere"
    );
    Ok(place)
}

/// `{place}/run`, or a folder in /tmp where that would make the socket's path too long.
fn socket_folder(place: &Path) -> Result<(PathBuf, Option<tempfile::TempDir>)> {
    let near = place.join("run");
    let name = format!(".s.PGSQL.{PORT}");
    // Whoever can enter the folder can be the database's superuser.
    let close = |dir: &Path| {
        std::fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(Error::io("chmod", dir))
    };
    if near.join(name).as_os_str().len() <= SOCKET_PATH_MAX {
        std::fs::create_dir_all(&near).map_err(Error::io("create", &near))?;
        close(&near)?;
        return Ok((near, None));
    }
    let tmp = Path::new("/tmp");
    let short = tempfile::Builder::new().prefix("lorafleet-pg-").tempdir_in(tmp);
    let short = short.map_err(Error::io("create a folder in", tmp))?;
    close(short.path())?;
    Ok((short.path().to_path_buf(), Some(short)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folder::open(dir.path(), Account::Own).unwrap();
        assert!(matches!(Folder::open(dir.path(), Account::Own), Err(Error::InUse { .. })));
        drop(first);
        Folder::open(dir.path(), Account::Own).unwrap();
    }

    #[test]
    fn long_paths_get_a_short_socket() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(100));
        let folder = Folder::open(&long, Account::Own).unwrap();
        assert!(folder.socket().as_os_str().len() < 60, "{:?}", folder.socket());
    }

    #[test]
    fn a_number_that_is_somebody_elses_now_is_stale() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path(), Account::Own).unwrap();
        std::fs::create_dir(folder.data()).unwrap();
        let file = folder.data().join("postmaster.pid");
        std::fs::write(&file, format!("{}\n", std::process::id())).unwrap();
        folder.end_orphan().unwrap();
        assert_eq!(file.exists(), !cfg!(target_os = "linux"));
    }
}
