//! Writing an object piece by piece: small ones in one request, large ones in parts, a few of them at once.

use bytes::{Bytes, BytesMut};
use object_store::{ObjectStoreExt, WriteMultipart};

use crate::{Path, Result, Store, StoreError};

/// Bytes of one part, and of the largest object that is written in one request.
pub(crate) const PART: usize = 8 << 20;
/// Parts on their way at once. Memory of an upload is at most this plus one, times [`PART`].
const PARTS_AT_ONCE: usize = 3;

/// An object being written; it appears when [`Upload::finish`] succeeds, and dropping it leaves nothing behind.
#[derive(Debug)]
pub struct Upload {
    store: Store,
    path: Path,
    first: BytesMut,
    parts: Option<WriteMultipart>,
}

impl Upload {
    pub(crate) fn new(store: Store, path: Path) -> Upload {
        Upload { store, path, first: BytesMut::new(), parts: None }
    }

    /// Takes the next bytes; waits while enough of the ones before are still on their way.
    ///
    /// # Errors
    /// [`StoreError::Refused`], [`StoreError::Unavailable`]; the upload is of no use then.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        if self.parts.is_none() {
            if self.first.len() + bytes.len() <= PART {
                self.first.extend_from_slice(&bytes);
                return Ok(());
            }
            let (store, path) = (&self.store, &self.path);
            let begin = || store.backend().put_multipart(path);
            let upload = store.retry().run("write", path, begin).await?;
            let mut parts = WriteMultipart::new_with_chunk_size(upload, PART);
            parts.put(std::mem::take(&mut self.first).freeze());
            self.parts = Some(parts);
        }
        if let Some(parts) = &mut self.parts {
            parts.put(bytes);
            let capacity = parts.wait_for_capacity(PARTS_AT_ONCE);
            let limit = self.store.retry().attempt_limit;
            within(limit, capacity).await.map_err(|error| failed(&self.path, error))?;
        }
        Ok(())
    }

    /// Makes the object appear, over whatever was there.
    ///
    /// # Errors
    /// [`StoreError::Refused`], [`StoreError::Unavailable`]; nothing has appeared then.
    pub async fn finish(mut self) -> Result<()> {
        match self.parts.take() {
            None => {
                let bytes = std::mem::take(&mut self.first).freeze();
                self.store.put_at_once(&self.path, bytes).await
            }
            Some(parts) => {
                let limit = self.store.retry().attempt_limit;
                within(limit, parts.finish()).await.map(drop).map_err(|error| failed(&self.path, error))
            }
        }
    }
}

impl Drop for Upload {
    /// Parts that no object will be made of cost money until they are deleted.
    fn drop(&mut self) {
        if let (Some(parts), Ok(runtime)) = (self.parts.take(), tokio::runtime::Handle::try_current()) {
            let path = self.path.clone();
            runtime.spawn(async move {
                if let Err(error) = parts.abort().await {
                    tracing::warn!(%path, %error, "removing the parts of an unfinished upload");
                }
            });
        }
    }
}

async fn within<T>(
    limit: std::time::Duration,
    operation: impl Future<Output = object_store::Result<T>>,
) -> object_store::Result<T> {
    let late = |_| object_store::Error::Generic {
        store: "upload",
        source: format!("a part was not taken within {} s", limit.as_secs()).into(),
    };
    tokio::time::timeout(limit, operation).await.map_err(late)?
}

/// Parts are repeated by `object_store`; beyond that the caller has to begin anew.
fn failed(path: &Path, error: object_store::Error) -> StoreError {
    match error {
        object_store::Error::Generic { .. } | object_store::Error::JoinError { .. } => {
            StoreError::Unavailable {
                action: "write",
                path: path.clone(),
                attempts: 1,
                reason: error.to_string(),
            }
        }
        source => StoreError::Refused { action: "write", path: path.clone(), source },
    }
}
