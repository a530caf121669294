//! A backend that fails on command: before or after a write takes effect, as a cut connection or a killed process does.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// When the chosen write fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// It did nothing.
    Before,
    /// It was done, but nobody was told.
    After,
    /// Half of it was done, and that was called the whole.
    Half,
}

/// Fails the write with this number, counted from 0, and all that follow if `down`.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<InMemory>,
    writes: AtomicUsize,
    fail_at: usize,
    when: When,
    down: bool,
}

impl Faulty {
    pub fn new(inner: Arc<InMemory>, fail_at: usize, when: When, down: bool) -> Arc<Faulty> {
        Arc::new(Faulty { inner, writes: AtomicUsize::new(0), fail_at, when, down })
    }
}

fn cut() -> Error {
    Error::Generic { store: "faulty", source: "connection cut".into() }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let number = self.writes.fetch_add(1, Ordering::SeqCst);
        if self.down && number > self.fail_at {
            return Err(cut());
        }
        if number == self.fail_at && self.when == When::Before {
            return Err(cut());
        }
        if number == self.fail_at && self.when == When::Half {
            let whole = Bytes::from(payload);
            let half = whole.slice(..whole.len() / 2);
            return self.inner.put_opts(path, half.into(), options).await;
        }
        let result = self.inner.put_opts(path, payload, options).await;
        if number == self.fail_at { Err(cut()) } else { result }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(path, ranges).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
