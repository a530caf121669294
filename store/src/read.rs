//! Reading an object range by range: bounded memory, and an interrupted range is read again, not the whole object.

use std::path::Path as FilePath;

use bytes::Bytes;
use object_store::ObjectStoreExt;
use tokio::io::AsyncWriteExt;

use crate::{Digest, Hasher, Path, Result, Store, StoreError};

/// Bytes read at once.
const RANGE: u64 = 4 << 20;

/// An object being read, from first byte to last.
#[derive(Debug)]
pub struct Reader {
    store: Store,
    path: Path,
    size: u64,
    next: u64,
}

impl Reader {
    pub(crate) async fn open(store: Store, path: Path) -> Result<Reader> {
        match store.size(&path).await? {
            Some(size) => Ok(Reader { store, path, size, next: 0 }),
            None => Err(StoreError::NotFound { path }),
        }
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The next piece, at most 4 MiB; nothing after the last.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when it was deleted meanwhile, [`StoreError::Damaged`] when it became shorter,
    /// [`StoreError::Refused`], [`StoreError::Unavailable`].
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.next == self.size {
            return Ok(None);
        }
        let range = self.next..self.size.min(self.next + RANGE);
        let (store, path) = (&self.store, &self.path);
        let get = || store.backend().get_range(path, range.clone());
        let bytes = store.retry().run("read", path, get).await?;
        if bytes.len() as u64 != range.end - range.start {
            let reason = format!("{} bytes in place of {range:?}", bytes.len());
            return Err(StoreError::Damaged { path: path.clone(), reason });
        }
        self.next = range.end;
        Ok(Some(bytes))
    }
}

impl Store {
    /// Copies an object into a file of this machine and checks its digest; the file appears whole or not at all.
    /// Returns its size in bytes.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when the bytes do not have the digest, [`StoreError::Local`] when the file cannot be
    /// written, and those of [`Store::read`].
    pub async fn download(&self, path: &Path, digest: &Digest, file: &FilePath) -> Result<u64> {
        let mut partial = file.as_os_str().to_owned();
        partial.push(format!(".{}.partial", std::process::id()));
        let partial = std::path::PathBuf::from(partial);
        let result = self.download_to(path, digest, &partial).await;
        let local = |source| StoreError::Local { path: file.to_path_buf(), source };
        match result {
            Ok(size) => tokio::fs::rename(&partial, file).await.map(|()| size).map_err(local),
            Err(error) => {
                // The first error is the one to tell.
                let _ = tokio::fs::remove_file(&partial).await;
                Err(error)
            }
        }
    }

    async fn download_to(&self, path: &Path, digest: &Digest, file: &FilePath) -> Result<u64> {
        let local = |source| StoreError::Local { path: file.to_path_buf(), source };
        let mut reader = self.read(path).await?;
        let mut output = tokio::fs::File::create(file).await.map_err(local)?;
        let mut hasher = Hasher::new();
        while let Some(bytes) = reader.next().await? {
            hasher.update(&bytes);
            output.write_all(&bytes).await.map_err(local)?;
        }
        output.flush().await.map_err(local)?;
        let found = hasher.finish();
        if found == *digest {
            Ok(reader.size())
        } else {
            let reason = format!("its sha256 is {found}, not {digest}");
            Err(StoreError::Damaged { path: path.clone(), reason })
        }
    }
}
