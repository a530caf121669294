//! Reading and writing single objects, with retries, deadlines and limits.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use crate::open::{self, Opened};
use crate::upload::PART;
use crate::{Path, Reader, Result, Retry, StoreError, Upload};

/// Objects that one listing may return.
const LIST_LIMIT: usize = 100_000;

/// A store; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    backend: Arc<dyn ObjectStore>,
    url: Arc<str>,
    folder: Option<Arc<std::path::Path>>,
    retry: Retry,
}

/// An object as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its place.
    pub path: Path,
    /// Its size in bytes.
    pub size: u64,
}

/// What became of a put that must not overwrite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is there now.
    Written,
    /// Something was there already. It may be our own first try, whose answer was lost: read it back.
    Existed,
}

impl Store {
    /// Opens the store of a URL: `file:///absolute/path` (made if need be), `s3://bucket/prefix`,
    /// `gs://bucket/prefix`, `az://container/prefix`, `memory://` (empty, for tests) or `memory:///name` (one for the
    /// whole process). Credentials and options come from the environment: `AWS_*`, `GOOGLE_*`, `AZURE_*`.
    ///
    /// Nothing is written or contacted yet, see [`Store::probe_writable`].
    ///
    /// # Errors
    /// [`StoreError::Url`].
    pub fn open(url: &str) -> Result<Store> {
        Store::open_with(url, open::environment())
    }

    /// As [`Store::open`], with these variables in place of the environment's.
    ///
    /// # Errors
    /// [`StoreError::Url`].
    pub fn open_with(url: &str, variables: impl IntoIterator<Item = (String, String)>) -> Result<Store> {
        let variables =
            variables.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        let Opened { backend, remote, folder } = open::open(url, &variables)?;
        // A disk's errors do not pass by themselves within minutes.
        let retry = if remote { Retry::default() } else { Retry::never() };
        Ok(Store { backend, url: url.into(), folder: folder.map(Into::into), retry })
    }

    /// A store over any backend.
    pub fn over(backend: Arc<dyn ObjectStore>, retry: Retry) -> Store {
        Store { url: backend.to_string().into(), backend, folder: None, retry }
    }

    /// The same store with other patience.
    #[must_use]
    pub fn with_retry(self, retry: Retry) -> Store {
        Store { retry, ..self }
    }

    /// The URL that was opened.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The folder that it is; nothing where it is none.
    pub(crate) fn folder(&self) -> Option<&std::path::Path> {
        self.folder.as_deref()
    }

    pub(crate) fn backend(&self) -> &dyn ObjectStore {
        &*self.backend
    }

    pub(crate) fn retry(&self) -> &Retry {
        &self.retry
    }

    /// Writes and deletes a small object, without patience: for a start that should fail soon and clearly.
    ///
    /// # Errors
    /// [`StoreError::NotWritable`].
    pub async fn probe_writable(&self) -> Result<()> {
        let probe =
            Path::from(format!("probes/{}-{}", std::process::id(), crate::Digest::of(self.url.as_bytes())));
        let store = self.clone().with_retry(Retry::never());
        let result = async {
            store.put(&probe, Bytes::from_static(b"lorafleet writes here\n")).await?;
            store.delete(&probe).await
        };
        let not_writable =
            |source| StoreError::NotWritable { url: self.url.to_string(), source: Box::new(source) };
        result.await.map_err(not_writable)
    }

    /// The size of an object in bytes; nothing when it is not there.
    ///
    /// # Errors
    /// [`StoreError::Refused`], [`StoreError::Unavailable`].
    pub async fn size(&self, path: &Path) -> Result<Option<u64>> {
        match self.retry.run("look up", path, || self.backend.head(path)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A whole object of at most `limit` bytes.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::TooLarge`], [`StoreError::Refused`], [`StoreError::Unavailable`].
    pub async fn get(&self, path: &Path, limit: u64) -> Result<Bytes> {
        let mut reader = self.read(path).await?;
        let size = reader.size();
        if size > limit {
            return Err(StoreError::TooLarge { path: path.clone(), size, limit });
        }
        let first = reader.next().await?.unwrap_or_default();
        if first.len() as u64 == size {
            return Ok(first);
        }
        let mut whole = Vec::with_capacity(size as usize);
        whole.extend_from_slice(&first);
        while let Some(chunk) = reader.next().await? {
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.into())
    }

    /// Reads an object piece by piece, in bounded memory.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Refused`], [`StoreError::Unavailable`].
    pub async fn read(&self, path: &Path) -> Result<Reader> {
        Reader::open(self.clone(), path.clone()).await
    }

    /// Writes an object, over whatever is there. It appears whole or not at all.
    ///
    /// # Errors
    /// [`StoreError::Refused`], [`StoreError::Unavailable`].
    pub async fn put(&self, path: &Path, bytes: Bytes) -> Result<()> {
        if bytes.len() <= PART {
            self.put_at_once(path, bytes).await
        } else {
            self.put_contents(path, &bytes).await.map(drop)
        }
    }

    /// Writes an object of at most one part.
    pub(crate) async fn put_at_once(&self, path: &Path, bytes: Bytes) -> Result<()> {
        self.retry.run("write", path, || self.backend.put(path, bytes.clone().into())).await.map(drop)
    }

    /// Writes a small object unless something is there, atomically: of several writers one is told [`Put::Written`].
    ///
    /// # Errors
    /// [`StoreError::Refused`], [`StoreError::Unavailable`].
    pub async fn put_if_absent(&self, path: &Path, bytes: Bytes) -> Result<Put> {
        let put = || async {
            let options = PutOptions::from(PutMode::Create);
            match self.backend.put_opts(path, bytes.clone().into(), options).await {
                Ok(_) => Ok(Put::Written),
                // Stores answer 409 or 412, and object_store does not always tell them apart.
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    Ok(Put::Existed)
                }
                Err(error) => Err(error),
            }
        };
        self.retry.run("write", path, put).await
    }

    /// Begins to write an object piece by piece, in bounded memory; it appears when [`Upload::finish`] succeeds.
    pub fn upload(&self, path: &Path) -> Upload {
        Upload::new(self.clone(), path.clone())
    }

    /// Everything below a folder, sorted by place.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] for more than 100,000 objects, [`StoreError::Refused`], [`StoreError::Unavailable`].
    pub async fn list(&self, folder: &Path) -> Result<Vec<Object>> {
        let list = || async {
            let mut found = Vec::new();
            let mut stream = self.backend.list(Some(folder));
            while let Some(meta) = stream.try_next().await? {
                found.push(Object { path: meta.location, size: meta.size });
                if found.len() > LIST_LIMIT {
                    break;
                }
            }
            Ok(found)
        };
        let mut found = match self.retry.run("list", folder, list).await {
            Ok(found) => found,
            // A folder that was never written to.
            Err(error) if error.is_not_found() => Vec::new(),
            Err(error) => return Err(error),
        };
        if found.len() > LIST_LIMIT {
            let (size, limit) = (found.len() as u64, LIST_LIMIT as u64);
            return Err(StoreError::TooLarge { path: folder.clone(), size, limit });
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Deletes an object; it may be gone already.
    ///
    /// # Errors
    /// [`StoreError::Refused`], [`StoreError::Unavailable`].
    pub async fn delete(&self, path: &Path) -> Result<()> {
        match self.retry.run("delete", path, || self.backend.delete(path)).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }
}
