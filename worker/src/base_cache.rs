//! What is kept between jobs: files by their digest on disk, and the last base in memory.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use lorafleet_lora::base::{Base, BaseError};
use lorafleet_spec::{
    base::Head,
    data::{Tokenizer, TokenizerError},
    job::Precision,
};
use lorafleet_store::{Digest, Hasher, Store, StoreError, download_base, layout};

/// A base in memory, with its tokenizer; shared by every job that trains on it, never written.
#[derive(Clone)]
pub struct LoadedBase {
    /// sha256 of its SHA256SUMS.
    pub digest: Digest,
    /// Shape and weights.
    pub base: Arc<Base>,
    /// Tokens and chat template.
    pub tokenizer: Arc<Tokenizer>,
}

/// Why a base cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It could not be fetched.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its files are no base that can be used.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// Its tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Files by their digest on this machine; several workers may share the folder.
pub struct Cache {
    dir: PathBuf,
    last: Mutex<Option<LoadedBase>>,
}

impl Cache {
    /// A cache in this folder, made if need be.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir.join("bases"))?;
        fs::create_dir_all(dir.join("adapters"))?;
        fs::create_dir_all(dir.join("datasets"))?;
        Ok(Self { dir: dir.to_path_buf(), last: Mutex::default() })
    }

    /// The base in that precision: from memory, or loaded from its files, or fetched first. The one before is dropped from memory, unless
    /// a job still holds it.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn base(
        &self,
        store: &Store,
        digest: &Digest,
        precision: Precision,
    ) -> Result<LoadedBase, LoadError> {
        let same = |loaded: &LoadedBase| loaded.digest == *digest && loaded.base.precision() == precision;
        let kept = self.last().clone().filter(same);
        if let Some(loaded) = kept {
            metrics::counter!(crate::telemetry::BASE_HITS).increment(1);
            return Ok(loaded);
        }
        let dir = self.dir.join("bases").join(digest.to_string());
        download_base(store, digest, &dir).await?;
        // Before the next is loaded, so that two need not fit.
        *self.last() = None;
        let loaded = LoadedBase {
            digest: *digest,
            base: Arc::new(Base::load_as(&dir, Head::LanguageModel, precision)?),
            tokenizer: Arc::new(Tokenizer::load(&dir)?),
        };
        *self.last() = Some(loaded.clone());
        Ok(loaded)
    }

    /// The folder of an adapter that a job starts from, fetched if need be. It lies in the store as a base does: by the
    /// digest of its SHA256SUMS.
    ///
    /// # Errors
    /// It cannot be fetched, or is damaged.
    pub async fn adapter(&self, store: &Store, digest: &Digest) -> Result<PathBuf, StoreError> {
        let dir = self.dir.join("adapters").join(digest.to_string());
        download_base(store, digest, &dir).await?;
        Ok(dir)
    }

    /// The file of a data set, its digest checked.
    ///
    /// # Errors
    /// It cannot be fetched.
    pub async fn dataset(&self, store: &Store, digest: &Digest) -> Result<PathBuf, StoreError> {
        let file = self.dir.join("datasets").join(digest.to_string());
        if hash(&file).is_ok_and(|found| found == *digest) {
            return Ok(file);
        }
        store.download(&layout::dataset(digest), digest, &file).await?;
        Ok(file)
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<LoadedBase>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The digest of a file's bytes.
fn hash(file: &Path) -> io::Result<Digest> {
    struct Into(Hasher);
    impl io::Write for Into {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut hasher = Into(Hasher::new());
    io::copy(&mut fs::File::open(file)?, &mut hasher)?;
    Ok(hasher.0.finish())
}
