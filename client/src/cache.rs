//! Bases and adapters of the fleet kept on this machine, by digest, so that each is fetched once.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use lorafleet_spec::digest;

use crate::{
    artifacts::{ProgressFor, base_file, checkpoint_file},
    client::Client,
    error::ClientError,
    files::SUMS,
    pb,
};

/// What makes a PEFT adapter of a checkpoint, or after full fine-tuning a Hugging Face model.
const USABLE: [[&str; 2]; 2] =
    [["adapter_config.json", "adapter_model.safetensors"], ["config.json", "model.safetensors"]];
/// What only training needs of it.
const ONLY_TRAINING: [&str; 2] = ["optimizer.safetensors", "best.safetensors"];

/// A folder of what was fetched. An entry appears in it whole or not at all.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// A cache in a folder of its own.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The user's cache: `$XDG_CACHE_HOME/lorafleet`, or `~/.cache/lorafleet`.
    ///
    /// # Errors
    /// `NotFound` when neither variable is set.
    pub fn of_user() -> Result<Self, ClientError> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        folder.map(|folder| Self::at(folder.join("lorafleet"))).ok_or_else(|| {
            ClientError::NotFound("no place for a cache: set HOME or XDG_CACHE_HOME".to_owned())
        })
    }

    /// Its folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a base, fetched if it is not here. `progress` is told of each file by name.
    ///
    /// # Errors
    /// `NotFound` when the fleet does not have it; `Damaged`; `File`.
    pub async fn base(
        &self,
        client: &Client,
        sha256: &str,
        progress: ProgressFor<'_>,
    ) -> Result<PathBuf, ClientError> {
        let place = self.place("bases", sha256)?;
        if place.is_dir() {
            return Ok(place);
        }
        let part = self.part("bases", sha256)?;
        let sums = base_file(sha256, SUMS, "");
        client.download(&sums, &part, SUMS, Some(sha256), &progress(SUMS, 0)).await?;
        let path = part.join(SUMS);
        let text = fs::read_to_string(&path).map_err(ClientError::file(&path))?;
        let files = digest::parse_sums(&text)
            .ok_or_else(|| ClientError::Protocol(format!("the {SUMS} of base {sha256} cannot be read")))?;
        for (name, digest) in files {
            let place = base_file(sha256, &name, "");
            client.download(&place, &part, &name, Some(&digest), &progress(&name, 0)).await?;
        }
        settle(&part, &place)
    }

    /// The folder of a checkpoint's PEFT adapter, fetched if it is not here.
    ///
    /// # Errors
    /// `NotFound` when the store no longer has it; `Damaged`; `File`.
    pub async fn adapter(
        &self,
        client: &Client,
        checkpoint: &pb::Checkpoint,
        progress: ProgressFor<'_>,
    ) -> Result<PathBuf, ClientError> {
        let place = self.place("adapters", &checkpoint.manifest_sha256)?;
        if place.is_dir() {
            return Ok(place);
        }
        let part = self.part("adapters", &checkpoint.manifest_sha256)?;
        client.download_checkpoint(checkpoint, &part, false, progress).await?;
        settle(&part, &place)
    }

    fn place(&self, kind: &str, sha256: &str) -> Result<PathBuf, ClientError> {
        if !digest::is_sha256(sha256) {
            return Err(ClientError::Protocol(format!("'{sha256}' is not a sha256")));
        }
        Ok(self.root.join(kind).join(sha256))
    }

    /// An empty folder of this process to fetch into.
    fn part(&self, kind: &str, sha256: &str) -> Result<PathBuf, ClientError> {
        let part = self.root.join(kind).join(format!(".{sha256}.{}", std::process::id()));
        if part.exists() {
            fs::remove_dir_all(&part).map_err(ClientError::file(&part))?;
        }
        fs::create_dir_all(&part).map_err(ClientError::file(&part))?;
        Ok(part)
    }
}

impl Client {
    /// Fetches a checkpoint's files into `folder` (made if needed), each checked by its digest: those of the PEFT
    /// adapter or of the model, or all of them. Returns the names written.
    ///
    /// # Errors
    /// `NotFound` when the store no longer has it; `Damaged`; `File`; `Protocol` when it holds no adapter and no model.
    pub async fn download_checkpoint(
        &self,
        checkpoint: &pb::Checkpoint,
        folder: &Path,
        all: bool,
        progress: ProgressFor<'_>,
    ) -> Result<Vec<String>, ClientError> {
        let has = |name: &&str| checkpoint.files.iter().any(|file| file.name == *name);
        if !USABLE.iter().any(|files| files.iter().all(has)) {
            let message = format!("{} holds neither an adapter nor a model", checkpoint.name);
            return Err(ClientError::Protocol(message));
        }
        fs::create_dir_all(folder).map_err(ClientError::file(folder))?;
        let mut written = Vec::new();
        for file in &checkpoint.files {
            if all || !ONLY_TRAINING.contains(&file.name.as_str()) {
                let place = checkpoint_file(&checkpoint.name, &file.name);
                self.download(
                    &place,
                    folder,
                    &file.name,
                    Some(&file.sha256),
                    &progress(&file.name, file.size_bytes),
                )
                .await?;
                written.push(file.name.clone());
            }
        }
        Ok(written)
    }
}

/// Puts a whole folder in its place; one that another process put there first serves as well.
fn settle(part: &Path, place: &Path) -> Result<PathBuf, ClientError> {
    if let Err(error) = fs::rename(part, place) {
        if !place.is_dir() {
            return Err(ClientError::file(place)(error));
        }
        fs::remove_dir_all(part).map_err(ClientError::file(part))?;
    }
    Ok(place.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_checked_before_it_becomes_a_path() {
        assert!(Cache::at("/tmp/x").place("bases", "../../etc").is_err());
    }
}
