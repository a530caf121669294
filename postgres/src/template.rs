//! Fresh data directories for tests: initialized once a day and machine, copied for each.

use std::fs::{File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::account::Account;
use crate::folder::{Folder, lock, lock_waiting};
use crate::server::run;
use crate::{Binaries, Error, Result};

/// Temporary folders are swept of old files: a template is used on the day that it was made.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The folder of templates and throwaway servers, locked.
struct Workshop {
    root: PathBuf,
    _lock: File,
}

impl Workshop {
    fn open(account: Account) -> Result<Workshop> {
        let mut tmp = std::env::temp_dir();
        if !account.reaches(&tmp) {
            tmp = "/tmp".into();
        }
        let us = rustix::process::geteuid().as_raw();
        let root = tmp.join(format!("lorafleet-postgres-{us}"));
        std::fs::create_dir_all(&root).map_err(Error::io("create", &root))?;
        let meta = std::fs::symlink_metadata(&root).map_err(Error::io("stat", &root))?;
        if !meta.is_dir() || meta.uid() != us {
            let source = std::io::Error::other("it belongs to another user; remove it, or set TMPDIR");
            return Err(Error::io("use", &root)(source));
        }
        std::fs::set_permissions(&root, Permissions::from_mode(0o755)).map_err(Error::io("chmod", &root))?;
        let _lock = lock_waiting(&root.join("lock"))?;
        Ok(Workshop { root, _lock })
    }

    fn named(&self, prefix: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.root).into_iter().flatten().flatten();
        let starts =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        entries.map(|entry| entry.path()).filter(starts).collect()
    }

    /// Removes the servers of processes that were killed: those whose lock is free.
    fn sweep(&self) {
        for dir in self.named("run-") {
            if let Ok(Some(_free)) = lock(&dir.join("lock")) {
                // Whatever remains is swept next time.
                let _ = std::fs::remove_dir_all(&dir);
            }
        }
    }
}

/// A new folder for a throwaway server, removed when dropped, or by the next caller if we are killed.
pub(crate) fn throwaway_folder(account: Account) -> Result<(tempfile::TempDir, Folder)> {
    let workshop = Workshop::open(account)?;
    workshop.sweep();
    let dir = tempfile::Builder::new().prefix("run-").tempdir_in(&workshop.root);
    let dir = dir.map_err(Error::io("create a folder in", &workshop.root))?;
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755))
        .map_err(Error::io("chmod", dir.path()))?;
    let folder = Folder::open(dir.path(), account)?;
    Ok((dir, folder))
}

/// Fills `data` with a copy of today's template, which is made first if there is none.
pub(crate) fn copy_to(data: &Path, binaries: &Binaries, account: Account) -> Result<()> {
    let version = run(Command::new(binaries.postgres()).arg("--version"))?;
    let version = version.split_whitespace().nth(2).unwrap_or("unknown").to_owned();
    let today = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
        / DAY.as_secs();
    let template = {
        let workshop = Workshop::open(account)?;
        let template = workshop.root.join(format!("template-{version}-{today}"));
        if !template.is_dir() {
            build(&workshop, &template, today, binaries, account)?;
        }
        template
    };
    copy_tree(&template, data)?;
    account.own(data)
}

fn build(
    workshop: &Workshop,
    template: &Path,
    today: u64,
    binaries: &Binaries,
    account: Account,
) -> Result<()> {
    for old in workshop.named("template-") {
        let day = old.to_string_lossy().rsplit('-').next().and_then(|day| day.parse::<u64>().ok());
        // Yesterday's may still be in the middle of being copied.
        if day.is_none_or(|day| day + 1 < today) {
            let _ = std::fs::remove_dir_all(&old);
        }
    }
    let new = workshop.root.join("building");
    if new.exists() {
        std::fs::remove_dir_all(&new).map_err(Error::io("remove", &new))?;
    }
    // Small WAL segments make the copy half as big.
    crate::server::initdb(&new, binaries, account, &["--no-sync", "--wal-segsize=1"])?;
    std::fs::rename(&new, template).map_err(Error::io("rename", &new))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir(to).map_err(Error::io("create", to))?;
    std::fs::set_permissions(to, Permissions::from_mode(0o700)).map_err(Error::io("chmod", to))?;
    for entry in std::fs::read_dir(from).map_err(Error::io("read", from))? {
        let entry = entry.map_err(Error::io("read", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().map_err(Error::io("stat", &source))?.is_dir() {
            copy_tree(&source, &target)?;
        } else {
            std::fs::copy(&source, &target).map_err(Error::io("copy", &source))?;
        }
    }
    Ok(())
}
