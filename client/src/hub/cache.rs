//! The hub's cache on disk, laid out as Hugging Face's tools lay it out, so that they share it:
//! `models--org--name/{blobs/{digest}, refs/{revision}, snapshots/{commit}/{file} → blob}`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use lorafleet_spec::base::HubId;

use super::{HubError, is_commit, is_plain_hex, listing::RemoteFile};

/// A repository at one commit, in the cache.
#[derive(Debug)]
pub(super) struct Snapshot {
    repository: PathBuf,
    commit: String,
    dir: PathBuf,
}

impl Snapshot {
    fn of(cache: &Path, id: &HubId, commit: &str) -> Self {
        let repository = repository(cache, id);
        let dir = repository.join("snapshots").join(commit);
        Self { repository, commit: commit.to_owned(), dir }
    }

    /// The snapshot that the cache knows for a revision.
    pub fn find(cache: &Path, id: &HubId) -> Option<Self> {
        let revision = id.revision();
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else {
            fs::read_to_string(repository(cache, id).join("refs").join(revision)).ok()?.trim().to_owned()
        };
        let snapshot = is_plain_hex(&commit).then(|| Self::of(cache, id, &commit))?;
        snapshot.dir.is_dir().then_some(snapshot)
    }

    /// A snapshot to be filled.
    pub fn begin(cache: &Path, id: &HubId, commit: &str) -> Result<Self, HubError> {
        let snapshot = Self::of(cache, id, commit);
        for dir in [&snapshot.dir, &snapshot.repository.join("blobs")] {
            fs::create_dir_all(dir).map_err(HubError::local(dir))?;
        }
        Ok(snapshot)
    }

    /// The folder that holds its files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its commit.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// Names of the files that are here.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let files = entries.filter(|entry| entry.path().is_file());
        files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Whether a file is here.
    pub fn has(&self, name: &str) -> bool {
        self.dir.join(name).is_file()
    }

    /// Where the bytes of a file lie or will lie.
    pub fn blob(&self, file: &RemoteFile) -> Result<PathBuf, HubError> {
        // A mirror may not say digests; then the commit and the name are what tells contents apart.
        let name = file.blob().map_or_else(|| format!("{}-{}", self.commit, file.name), str::to_owned);
        Ok(self.repository.join("blobs").join(name))
    }

    /// Makes a file appear in the folder.
    pub fn link(&self, name: &str, blob: &Path) -> Result<(), HubError> {
        let path = self.dir.join(name);
        let Some(blob_name) = blob.file_name() else { return Ok(()) };
        let target = Path::new("../../blobs").join(blob_name);
        match std::os::unix::fs::symlink(&target, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // A link that leads nowhere, or another process that was faster: both end with the right one.
                fs::remove_file(&path).map_err(HubError::local(&path))?;
                std::os::unix::fs::symlink(&target, &path).map_err(HubError::local(&path))
            }
            other => other.map_err(HubError::local(&path)),
        }
    }

    /// Notes that a revision is this commit.
    pub fn remember(&self, id: &HubId) -> Result<(), HubError> {
        if is_commit(id.revision()) {
            return Ok(());
        }
        let path = self.repository.join("refs").join(id.revision());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(HubError::local(parent))?;
        }
        fs::write(&path, &self.commit).map_err(HubError::local(&path))
    }
}

fn repository(cache: &Path, id: &HubId) -> PathBuf {
    cache.join(format!("models--{}", id.id.replace('/', "--")))
}
