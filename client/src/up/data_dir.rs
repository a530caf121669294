//! The folder that a local fleet keeps everything in: its layout, and the lock that gives it to one `up` at a time.

use std::{
    fs::{self, File, OpenOptions},
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};

/// What is running, for programs: URL and process ids, while it runs.
const STATE: &str = "up.json";

/// The folder, locked until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// The kernel lets go of the lock when the file is closed, however we end.
    _lock: File,
}

impl DataDir {
    /// Makes the folder if needed, and takes it.
    ///
    /// # Errors
    /// When another `up` has it, or it cannot be written.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        let path = fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()))?;
        let place = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&place)
            .with_context(|| format!("cannot write {}", place.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            // Only to name the holder; without its id the message still says what to do.
            let _ = lock.read_to_string(&mut holder);
            let who = if holder.is_empty() { String::new() } else { format!(" (process {})", holder.trim()) };
            bail!(
                "another `lorafleet up`{who} runs in {}; stop that one, or give this one --data-dir DIR and --port 0",
                path.display()
            );
        }
        fs::write(&place, std::process::id().to_string())
            .with_context(|| format!("cannot write {}", place.display()))?;
        for folder in ["store", "logs"] {
            let folder = path.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(Self { path, _lock: lock })
    }

    /// The folder itself, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The database's own folder.
    pub fn postgres(&self) -> PathBuf {
        self.path.join("postgres")
    }

    /// Where workers keep what they fetched from the store.
    pub fn worker_cache(&self) -> PathBuf {
        self.path.join("cache")
    }

    /// The object store's URL.
    ///
    /// # Errors
    /// When the path cannot be written as one.
    pub fn store_url(&self) -> anyhow::Result<String> {
        let store = self.path.join("store");
        let text = store.to_str().with_context(|| format!("{} is not UTF-8", store.display()))?;
        // What a URL's path must not hold; everything else stays readable.
        let escaped: String = text
            .bytes()
            .map(|byte| match byte {
                b'/' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
                _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            })
            .collect();
        Ok(format!("file://{escaped}"))
    }

    /// A fresh log file for a program; what the last run wrote is kept as `NAME.log.old`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn rotate_log(&self, name: &str) -> anyhow::Result<PathBuf> {
        let log = self.path.join("logs").join(format!("{name}.log"));
        if log.exists() {
            let old = log.with_extension("log.old");
            fs::rename(&log, &old).with_context(|| format!("cannot write {}", old.display()))?;
        }
        Ok(log)
    }

    /// Writes what is running, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_state(&self, state: &serde_json::Value) -> anyhow::Result<()> {
        let (new, place) = (self.path.join(".up.json"), self.path.join(STATE));
        fs::write(&new, format!("{state:#}\n")).with_context(|| format!("cannot write {}", new.display()))?;
        fs::rename(&new, &place).with_context(|| format!("cannot write {}", place.display()))
    }

    /// Nothing runs any more.
    ///
    /// # Errors
    /// When the file is there and cannot be removed.
    pub fn clear_state(&self) -> anyhow::Result<()> {
        let place = self.path.join(STATE);
        match fs::remove_file(&place) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", place.display()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_up_has_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let error = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("(process {})", std::process::id())), "{error}");
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn the_store_is_a_url() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(&dir.path().join("with space")).unwrap();
        let url = data.store_url().unwrap();
        assert!(url.starts_with("file:///") && url.ends_with("/with%20space/store"), "{url}");
    }

    #[test]
    fn the_last_log_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let log = data.rotate_log("worker-0").unwrap();
        fs::write(&log, "first").unwrap();
        assert_eq!(data.rotate_log("worker-0").unwrap(), log);
        assert!(!log.exists());
        assert_eq!(fs::read_to_string(dir.path().join("logs/worker-0.log.old")).unwrap(), "first");
    }
}
