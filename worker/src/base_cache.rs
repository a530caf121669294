//! What is kept between jobs: files by their digest on disk, and the last base in memory.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use lorafleet_lora::base::{Base, BaseError};
use lorafleet_proto::v1 as pb;
use lorafleet_spec::{
    base::Head,
    data::{Tokenizer, TokenizerError},
    job::Precision,
};
use lorafleet_store::{CheckpointId, Digest, Hasher, Store, StoreError, download_base, layout};

/// What of a checkpoint is its adapter.
const ADAPTER_FILES: [&str; 3] = ["adapter_config.json", "adapter_model.safetensors", "labels.json"];

/// A base's files on this machine, with its tokenizer.
#[derive(Clone)]
pub struct BaseFiles {
    /// sha256 of its SHA256SUMS.
    pub digest: Digest,
    /// The folder.
    pub dir: PathBuf,
    /// Tokens and chat template.
    pub tokenizer: Arc<Tokenizer>,
}

/// What of a base is in memory.
#[derive(Default)]
struct Last {
    files: Option<BaseFiles>,
    /// Shape and weights, with the head that a task wants; shared by every job that trains on it, never written.
    base: Option<(Digest, Head, Arc<Base>)>,
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
    last: Mutex<Last>,
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

    /// A base's files: fetched where they are not here, its tokenizer from memory where it was the last one.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn base_files(&self, store: &Store, digest: &Digest) -> Result<BaseFiles, LoadError> {
        let kept = self.last().files.clone().filter(|files| files.digest == *digest);
        if let Some(files) = kept {
            return Ok(files);
        }
        let dir = self.dir.join("bases").join(digest.to_string());
        download_base(store, digest, &dir).await?;
        let tokenizer = Arc::new(Tokenizer::load(&dir)?);
        let files = BaseFiles { digest: *digest, dir, tokenizer };
        self.last().files = Some(files.clone());
        Ok(files)
    }

    /// The base with the head and in the precision that a job wants: from memory, or loaded from its files. The one before
    /// is dropped from memory, unless a job still holds it.
    ///
    /// # Errors
    /// Its files are no base that can be used.
    pub fn base(&self, files: &BaseFiles, head: Head, precision: Precision) -> Result<Arc<Base>, LoadError> {
        if let Some((digest, of, base)) = &self.last().base
            && (*digest, *of, base.precision()) == (files.digest, head, precision)
        {
            metrics::counter!(crate::telemetry::BASE_HITS).increment(1);
            return Ok(base.clone());
        }
        // Before the next is loaded, so that two need not fit.
        self.last().base = None;
        let base = Arc::new(Base::load_as(&files.dir, head, precision)?);
        self.last().base = Some((files.digest, head, base.clone()));
        Ok(base)
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

    /// The folder of the adapter that a job has trained: the PEFT files of a checkpoint and its labels, fetched if need
    /// be.
    ///
    /// # Errors
    /// They cannot be fetched, or are damaged.
    pub async fn checkpoint(
        &self,
        store: &Store,
        checkpoint: &pb::Checkpoint,
    ) -> Result<PathBuf, StoreError> {
        let (job, id) = CheckpointId::parse_resource_name(&checkpoint.name)?;
        let dir = self.dir.join("adapters").join(format!("{job}-{id}"));
        let local = |source| StoreError::Local { path: dir.clone(), source };
        fs::create_dir_all(&dir).map_err(local)?;
        for file in checkpoint.files.iter().filter(|file| ADAPTER_FILES.contains(&file.name.as_str())) {
            let name = file.name.parse()?;
            let path = layout::checkpoint_file(&job, &id, &name);
            let bad = |_| StoreError::Damaged {
                path: path.clone(),
                reason: format!("its row has no digest of it, but {:?}", file.sha256),
            };
            let digest: Digest = file.sha256.parse().map_err(bad)?;
            let to = dir.join(name.as_str());
            if hash(&to).is_ok_and(|found| found == digest) {
                continue;
            }
            store.download(&path, &digest, &to).await?;
        }
        Ok(dir)
    }

    /// Where an attempt of a job puts a model together: a path that is not there yet. What earlier attempts left here is
    /// deleted.
    ///
    /// # Errors
    /// The folder of such paths cannot be made or read.
    pub fn scratch(&self, job: &str, attempt: u32) -> io::Result<PathBuf> {
        let dir = self.dir.join("merges");
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_string_lossy().trim_start_matches('.').starts_with(job) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(dir.join(format!("{job}-{attempt}")))
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

    fn last(&self) -> std::sync::MutexGuard<'_, Last> {
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
