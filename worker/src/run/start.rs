//! The adapter that is there before a job begins: a folder by the digest of its SHA256SUMS, or what a job has trained.

use std::{fs, path::PathBuf};

use lorafleet_lora::{Adapter, Base, adapter::WEIGHTS_FILE};
use lorafleet_spec::job::Start;
use lorafleet_store::Digest;
use tracing::info;

use super::{
    Run,
    companions::LABELS_FILE,
    end::{End, missing},
    prepare::digest,
};

const FIELD: &str = "adapter.start";

/// An adapter on this machine.
#[derive(Debug)]
pub(super) struct Found {
    /// Its folder.
    pub dir: PathBuf,
    /// What people know it by.
    pub name: String,
}

/// Fetches it, as a base is.
pub(super) fn find(run: &Run, start: &Start) -> Result<Found, End> {
    let cache = &run.workshop.cache;
    let failed = |error| missing(&format!("spec.{FIELD}"), &error);
    match start {
        Start::Folder(source) => {
            let digest = digest(source, FIELD)?;
            let dir = run.block_on(cache.adapter(&run.store, &digest)).map_err(failed)?;
            Ok(Found { dir, name: source.source.clone() })
        }
        Start::Job(job) => {
            let gone = || {
                End::Failed(format!(
                    "spec.{FIELD}: {job} has no final checkpoint, or it was deleted: train it anew"
                ))
            };
            let checkpoint = run.assign.adapter.as_ref().ok_or_else(gone)?;
            let dir = run.block_on(cache.checkpoint(&run.store, checkpoint)).map_err(failed)?;
            Ok(Found { dir, name: format!("{job} (step {})", checkpoint.step) })
        }
    }
}

impl Found {
    /// Reads it.
    pub fn load(&self, base: &Base) -> Result<Adapter, End> {
        let adapter = Adapter::load(&self.dir, base.shape(), &|name| base.tensor(name));
        let adapter = adapter.map_err(|error| self.wrong(&error.to_string()))?;
        info!(adapter = self.name, "start read");
        Ok(adapter)
    }

    /// Digest of its weights.
    pub fn weights_sha256(&self) -> Result<Digest, End> {
        let path = self.dir.join(WEIGHTS_FILE);
        let bytes = fs::read(&path).map_err(|error| End::lost(format!("{}: {error}", path.display())))?;
        Ok(Digest::of(&bytes))
    }

    /// Names of the classes that it knows; none where it predicts a score.
    pub fn labels(&self) -> Result<Vec<String>, End> {
        match fs::read(self.dir.join(LABELS_FILE)) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|error| self.wrong(&format!("{LABELS_FILE}: {error}")))
            }
            // What was trained on scores has none.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(End::lost(format!("{}: {error}", self.dir.display()))),
        }
    }

    fn wrong(&self, why: &str) -> End {
        End::Failed(format!("spec.{FIELD} ({}): {why}", self.name))
    }
}
