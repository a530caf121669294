//! What is to be written into an object: bytes that are made while they are read, as often as a try needs them.

use bytes::Bytes;

use crate::{Digest, Hasher, Path, Result, Store, upload::PART};

/// The contents of an object. Reading them again gives the same bytes.
pub trait Contents: Send + Sync {
    /// How many bytes there are.
    fn size(&self) -> u64;

    /// All of them from the start, in pieces that fit into memory a few times over.
    fn pieces(&self) -> Box<dyn Iterator<Item = Bytes> + Send + '_>;
}

impl Contents for Bytes {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn pieces(&self) -> Box<dyn Iterator<Item = Bytes> + Send + '_> {
        let part = |start: usize| self.slice(start..self.len().min(start + PART));
        Box::new((0..self.len()).step_by(PART).map(part))
    }
}

impl<C: Contents + ?Sized> Contents for Box<C> {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn pieces(&self) -> Box<dyn Iterator<Item = Bytes> + Send + '_> {
        (**self).pieces()
    }
}

/// The digest of contents, made on this thread.
pub(crate) fn digest(contents: &dyn Contents) -> Digest {
    let mut hasher = Hasher::new();
    contents.pieces().for_each(|piece| hasher.update(&piece));
    hasher.finish()
}

impl Store {
    /// Writes an object, over whatever is there, and returns its digest. It appears whole or not at all. Large contents
    /// go in parts, a few of them at once: memory stays bounded, whatever their size. They are read on the calling
    /// thread, and read again from the start when a part is lost.
    ///
    /// # Errors
    /// [`StoreError::Refused`], [`StoreError::Unavailable`].
    pub async fn put_contents(&self, path: &Path, contents: &dyn Contents) -> Result<Digest> {
        let once = || async {
            let (mut upload, mut hasher) = (self.upload(path), Hasher::new());
            for piece in contents.pieces() {
                hasher.update(&piece);
                upload.write(piece).await?;
            }
            upload.finish().await?;
            Ok(hasher.finish())
        };
        if contents.size() <= PART as u64 {
            // One request, which is repeated by itself.
            return once().await;
        }
        self.retry().run_whole("write", path, once).await
    }
}
