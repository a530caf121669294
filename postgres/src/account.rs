//! The account that the server runs as: ours, or an unprivileged one when we are root.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, Result};

/// Accounts that may run the server when we are root, best first.
const UNPRIVILEGED: [&str; 2] = ["postgres", "nobody"];

/// `nobody` on every Linux, for systems without a readable /etc/passwd entry.
const OVERFLOW_ID: u32 = 65534;

/// Who runs the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Account {
    /// The user that we are.
    Own,
    /// Another, which we become in the child because we are root.
    Other { uid: u32, gid: u32 },
}

impl Account {
    /// Our own account, or `postgres`, `nobody` or uid 65534 when we are root.
    pub(crate) fn choose() -> Account {
        if !rustix::process::geteuid().is_root() {
            return Account::Own;
        }
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let (uid, gid) = UNPRIVILEGED
            .iter()
            .find_map(|name| lookup(&passwd, name))
            .filter(|(uid, _)| *uid != 0)
            .unwrap_or((OVERFLOW_ID, OVERFLOW_ID));
        Account::Other { uid, gid }
    }

    /// Makes the command run as this account. The standard library also drops all supplementary groups.
    pub(crate) fn apply(self, command: &mut Command) {
        if let Account::Other { uid, gid } = self {
            command.uid(uid).gid(gid);
        }
    }

    /// Gives a file or folder, and all that is in it, to this account; links themselves, never what they point to.
    pub(crate) fn own(self, path: &Path) -> Result<()> {
        let Account::Other { uid, gid } = self else { return Ok(()) };
        let mut left = vec![path.to_path_buf()];
        while let Some(path) = left.pop() {
            std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).map_err(Error::io("chown", &path))?;
            let kind = std::fs::symlink_metadata(&path).map_err(Error::io("stat", &path))?;
            if kind.is_dir() {
                left.extend(children(&path)?);
            }
        }
        Ok(())
    }

    /// Whether this account can reach what lies in `dir`: all its parents can be traversed.
    pub(crate) fn reaches(self, dir: &Path) -> bool {
        let Account::Other { uid, gid } = self else { return true };
        let Ok(dir) = dir.canonicalize() else { return false };
        dir.ancestors().all(|at| {
            std::fs::metadata(at).is_ok_and(|meta| {
                let bit = match () {
                    () if meta.uid() == uid => 0o100,
                    () if meta.gid() == gid => 0o010,
                    () => 0o001,
                };
                meta.permissions().mode() & bit != 0
            })
        })
    }
}

fn children(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(Error::io("read", dir))?;
    entries.map(|entry| entry.map(|e| e.path()).map_err(Error::io("read", dir))).collect()
}

/// uid and gid of an account, from the text of /etc/passwd.
fn lookup(passwd: &str, name: &str) -> Option<(u32, u32)> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some((uid, gid))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_passwd() {
        let passwd =
            "root:x:0:0:root:/root:/bin/bash\npostgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\n";
        assert_eq!(lookup(passwd, "postgres"), Some((101, 104)));
        assert_eq!(lookup(passwd, "post"), None);
    }

    #[test]
    fn closed_parents_are_noticed() {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let other = Account::Other { uid: OVERFLOW_ID, gid: OVERFLOW_ID };
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!other.reaches(dir.path()));
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(other.reaches(dir.path()));
        assert!(Account::Own.reaches(dir.path()));
    }
}
