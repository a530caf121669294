//! The first admin's token: from a file, or into it.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use sqlx::PgPool;
use tracing::{info, warn};

use super::{NewToken, Secret, rows};
use crate::{
    access::Role,
    db::{DbError, within},
    tenants::DEFAULT_TENANT,
};

/// What the token is called.
const DESCRIPTION: &str = "bootstrap";

/// Why there is no first token.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The file.
    #[error("the bootstrap token's file {} cannot be used: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds something else.
    #[error(
        "the file {} holds no token: it must hold `lft_` and 64 lower-case hex digits, or must not exist, so that one is \
         written into it", .0.display()
    )]
    NotAToken(PathBuf),
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Sees to it that the secret in a file belongs to a token of an admin. A file that is not there is written, readable by its
/// owner alone. Several coordinators may have the same file, or copies of it.
pub async fn bootstrap(pool: &PgPool, path: &Path) -> Result<(), BootstrapError> {
    let secret = secret(path)?;
    let new = NewToken {
        tenant: DEFAULT_TENANT,
        role: Role::Admin,
        description: DESCRIPTION,
        expire_time: None,
        digest: secret.digest(),
    };
    if let Some(token) = within(rows::create(pool, new)).await? {
        info!(file = %path.display(), token = token.name(), "first admin's token");
        return Ok(());
    }
    let known = within(rows::by_digest(pool, secret.digest())).await?;
    if let Some(token) = known.filter(|token| token.revoke_time.is_some()) {
        warn!(file = %path.display(), token = token.name(), "the bootstrap token was revoked, and stays so");
    }
    Ok(())
}

fn secret(path: &Path) -> Result<Secret, BootstrapError> {
    let failed = |source| BootstrapError::File { path: path.to_owned(), source };
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(text) => {
            return Secret::parse(text.trim()).ok_or_else(|| BootstrapError::NotAToken(path.to_owned()));
        }
    }
    let new = Secret::random();
    match write_whole(path, new.reveal()) {
        Ok(()) => Ok(new),
        // Another coordinator was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => secret(path),
        Err(error) => Err(failed(error)),
    }
}

/// Writes a file that only its owner may read. Whoever sees it sees all of it.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    writeln!(file, "{text}")?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path).map(drop).map_err(|error| error.error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_written_once_and_read_from_then_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("admin.token");
        let made = secret(&path).expect("a secret");
        assert_eq!(secret(&path).expect("the same"), made);
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn another_file_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notes");
        fs::write(&path, "hunter2").expect("written");
        assert!(matches!(secret(&path), Err(BootstrapError::NotAToken(_))));
        assert_eq!(fs::read_to_string(&path).expect("there"), "hunter2");
        assert!(matches!(secret(&folder.path().join("no/folder")), Err(BootstrapError::File { .. })));
    }
}
