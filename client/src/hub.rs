//! Bases from the Hugging Face hub (or a mirror of it), kept in the cache that Python's tools share.

mod cache;
mod config;
mod error;
mod http;
mod listing;

use std::path::PathBuf;

use lorafleet_spec::base::{HubId, needed_files};

use crate::artifacts::ProgressFor;

pub use config::HubConfig;
pub use error::HubError;

use cache::Snapshot;
use http::Http;
use listing::Listing;

/// The name of the index of sharded weights, which tells what else is needed.
const INDEX: &str = "model.safetensors.index.json";

/// A base that is on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubBase {
    /// The folder of its files.
    pub dir: PathBuf,
    /// Its id at the commit that the folder holds.
    pub id: HubId,
}

/// A hub, and the cache of what came from it.
#[derive(Debug)]
pub struct Hub {
    config: HubConfig,
    http: Http,
}

impl Hub {
    /// A hub as the environment says: see [`HubConfig::from_env`].
    ///
    /// # Errors
    /// A setting that cannot be used.
    pub fn from_env() -> Result<Self, HubError> {
        Self::new(HubConfig::from_env()?)
    }

    /// A hub with these settings.
    ///
    /// # Errors
    /// No client for HTTP can be made.
    pub fn new(config: HubConfig) -> Result<Self, HubError> {
        let http = Http::new(&config)?;
        Ok(Self { config, http })
    }

    /// The base as it lies in the cache, if all of it does; never asks the network.
    pub fn cached(&self, id: &HubId) -> Option<HubBase> {
        let snapshot = Snapshot::find(&self.config.cache, id)?;
        let names = snapshot.names();
        let index = std::fs::read_to_string(snapshot.dir().join(INDEX)).ok();
        needed_files(&names, index.as_deref()).ok()?;
        Some(HubBase { dir: snapshot.dir().to_owned(), id: id.at(snapshot.commit()) })
    }

    /// The base's folder, fetched as far as the cache lacks it: its config, tokenizer and weights, and nothing else of the
    /// repository. `progress` is told of each file by name.
    ///
    /// A branch or tag is asked for its commit each time; a commit that is whole in the cache needs no network.
    ///
    /// # Errors
    /// [`HubError`]; each says what to do.
    pub async fn fetch(&self, id: &HubId, progress: ProgressFor<'_>) -> Result<HubBase, HubError> {
        if (self.config.offline || is_commit(id.revision()))
            && let Some(cached) = self.cached(id)
        {
            return Ok(cached);
        }
        if self.config.offline {
            return Err(HubError::Offline { id: id.clone(), cache: self.config.cache.clone() });
        }
        let listing = self.http.list(id).await?;
        let snapshot = Snapshot::begin(&self.config.cache, id, &listing.commit)?;
        let names = listing.names();
        let unusable = |source| HubError::Unusable { id: id.clone(), source: Box::new(source) };
        let mut needed = needed_files(&names, None).map_err(unusable)?;
        if needed.iter().any(|name| name == INDEX) {
            self.get(id, &listing, INDEX, &snapshot, progress).await?;
            let path = snapshot.dir().join(INDEX);
            let index = std::fs::read_to_string(&path).map_err(HubError::local(&path))?;
            needed = needed_files(&names, Some(&index)).map_err(unusable)?;
        }
        // Small files first: what is wrong with a config is known before gigabytes have come.
        needed.sort_by_key(|name| name.ends_with(".safetensors"));
        for name in &needed {
            self.get(id, &listing, name, &snapshot, progress).await?;
        }
        snapshot.remember(id)?;
        Ok(HubBase { dir: snapshot.dir().to_owned(), id: id.at(&listing.commit) })
    }

    async fn get(
        &self,
        id: &HubId,
        listing: &Listing,
        name: &str,
        snapshot: &Snapshot,
        progress: ProgressFor<'_>,
    ) -> Result<(), HubError> {
        let Some(file) = listing.file(name) else { return Ok(()) };
        if snapshot.has(name) {
            return Ok(());
        }
        let told = progress(&format!("{}/{name}", id.id), file.size.unwrap_or_default());
        let blob = snapshot.blob(file)?;
        if !blob.is_file() {
            self.http.download(id, &listing.commit, file, &blob, &told).await?;
        }
        snapshot.link(name, &blob)
    }
}

/// Whether a revision names one state of a repository for ever.
fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a text may be the name of a file in the cache: digits and letters only.
fn is_plain_hex(text: &str) -> bool {
    (8..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
