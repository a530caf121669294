//! Where PostgreSQL's programs are.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A folder that holds `postgres`, `initdb` and `createdb` of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    bin: PathBuf,
}

impl Binaries {
    /// Looks through `PATH`, Debian's `/usr/lib/postgresql/*/bin` (newest version first), `/usr/pgsql-*/bin`,
    /// `/usr/local/bin` and Homebrew's folders.
    ///
    /// # Errors
    /// [`Error::Missing`], which says what to install.
    pub fn find() -> Result<Binaries> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        folders.extend(versioned(Path::new("/usr/lib/postgresql"), ""));
        folders.extend(versioned(Path::new("/usr"), "pgsql-"));
        folders.extend(
            ["/usr/local/bin", "/usr/local/pgsql/bin", "/opt/homebrew/bin"].iter().map(PathBuf::from),
        );
        Binaries::find_in(&folders)
    }

    /// Looks through the given folders, in order.
    ///
    /// # Errors
    /// [`Error::Missing`] when none of them has both `postgres` and `initdb`.
    pub fn find_in(folders: &[PathBuf]) -> Result<Binaries> {
        let has_both = |dir: &PathBuf| dir.join("postgres").is_file() && dir.join("initdb").is_file();
        let Some(found) = folders.iter().find(|dir| has_both(dir)) else {
            return Err(Error::Missing { searched: folders.to_vec() });
        };
        // Often a folder of links: the rest of that version's programs lie where they point to.
        let server = found.join("postgres");
        let real = server.canonicalize().map_err(Error::io("resolve", &server))?;
        let bin = match real.parent() {
            Some(dir) if dir.join("initdb").is_file() => dir.to_path_buf(),
            _ => found.clone(),
        };
        Ok(Binaries { bin })
    }

    /// The server itself.
    pub fn postgres(&self) -> PathBuf {
        self.bin.join("postgres")
    }

    /// Makes a new data directory.
    pub fn initdb(&self) -> PathBuf {
        self.bin.join("initdb")
    }

    /// Makes a new database in a running server.
    pub fn createdb(&self) -> PathBuf {
        self.bin.join("createdb")
    }
}

/// `{root}/{prefix}{version}/bin`, highest version first.
fn versioned(root: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir(root)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, bin)| bin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_to_install() {
        let error = Binaries::find_in(&["/nowhere".into()]).unwrap_err().to_string();
        assert!(error.contains("apt-get install postgresql"), "{error}");
        assert!(error.contains("/nowhere"), "{error}");
    }

    #[test]
    fn newest_version_first() {
        let root = tempfile::tempdir().unwrap();
        for version in ["9", "15", "not-a-version"] {
            std::fs::create_dir(root.path().join(version)).unwrap();
        }
        let bins = versioned(root.path(), "");
        assert_eq!(bins, [root.path().join("15/bin"), root.path().join("9/bin")]);
    }

    #[test]
    fn follows_links_to_the_whole_version() {
        let root = tempfile::tempdir().unwrap();
        let (real, links) = (root.path().join("real"), root.path().join("links"));
        std::fs::create_dir(&real).unwrap();
        std::fs::create_dir(&links).unwrap();
        for name in ["postgres", "initdb"] {
            std::fs::write(real.join(name), "").unwrap();
            std::os::unix::fs::symlink(real.join(name), links.join(name)).unwrap();
        }
        let found = Binaries::find_in(&[links]).unwrap();
        assert_eq!(found.postgres(), real.canonicalize().unwrap().join("postgres"));
    }
}
