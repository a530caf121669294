//! One upload: a header, then bytes, hashed and checked while they pass into the store.

use std::time::Duration;

use bytes::Bytes;
use lorafleet_proto::v1 as pb;
use lorafleet_store::{Digest, FileName, Hasher, Store, Sums, base_is_whole, layout};
use pb::upload_file_request::Part;
use tonic::Streaming;

use super::content::{self, ContentCheck};
use super::place::Place;
use super::{ApiError, CHUNK};

/// Bytes of a data set.
pub(super) const DATASET_LIMIT: u64 = 16 << 30;
/// Bytes of a file of a base; larger models are sharded.
const BASE_FILE_LIMIT: u64 = 64 << 30;
/// Bytes of a SHA256SUMS.
const SUMS_LIMIT: u64 = 1 << 20;
/// How long the client may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// Receives one file.
pub(super) async fn receive(
    store: &Store,
    requests: Streaming<pb::UploadFileRequest>,
) -> Result<pb::UploadFileResponse, ApiError> {
    let mut body = Body { requests, expected: 0, received: 0 };
    let header = body.header().await?;
    match Place::parse("header.artifact", header.artifact)? {
        Place::Dataset(digest) => {
            body.expect(header.size_bytes, DATASET_LIMIT)?;
            let hint = header.data.unwrap_or_default();
            let check = ContentCheck::new(&hint.name, content::rules("header.data", &hint)?);
            dataset(store, &digest, check, body).await
        }
        Place::Base { base, name, sha256 } if name.as_str() == layout::SUMS => {
            body.expect(header.size_bytes, SUMS_LIMIT)?;
            if sha256.is_some_and(|sha256| sha256 != base) {
                return Err(ApiError::field("header.artifact.base_file.sha256", "must be the base's digest"));
            }
            sums(store, &base, body).await
        }
        Place::Base { base, name, sha256 } => {
            body.expect(header.size_bytes, BASE_FILE_LIMIT)?;
            let missing = || ApiError::field("header.artifact.base_file.sha256", "is needed to upload");
            base_file(store, &base, &name, &sha256.ok_or_else(missing)?, body).await
        }
        Place::Checkpoint { .. } => {
            let refused = "only data sets and files of bases are uploaded; workers write checkpoints";
            Err(ApiError::field("header.artifact", refused))
        }
    }
}

/// What the client sends after the header.
struct Body {
    requests: Streaming<pb::UploadFileRequest>,
    expected: u64,
    received: u64,
}

impl Body {
    async fn header(&mut self) -> Result<pb::UploadHeader, ApiError> {
        match self.message().await? {
            Some(Part::Header(header)) => Ok(header),
            Some(Part::Chunk(_)) | None => Err(ApiError::field("header", "must come first")),
        }
    }

    fn expect(&mut self, size: u64, limit: u64) -> Result<(), ApiError> {
        match size {
            0 => Err(ApiError::field("header.size_bytes", "is 0: the file is empty")),
            _ if size > limit => {
                Err(ApiError::field("header.size_bytes", format!("is {size}, above the limit of {limit}")))
            }
            _ => {
                self.expected = size;
                Ok(())
            }
        }
    }

    /// The next bytes; nothing after the last, whose number is then the announced one.
    async fn chunk(&mut self) -> Result<Option<Bytes>, ApiError> {
        let chunk = match self.message().await? {
            Some(Part::Header(_)) => return Err(ApiError::field("header", "was sent already")),
            Some(Part::Chunk(chunk)) => chunk,
            None if self.received == self.expected => return Ok(None),
            None => return Err(self.size_differs("ended after")),
        };
        if chunk.len() > CHUNK {
            return Err(ApiError::field("chunk", format!("has {} bytes; {CHUNK} are allowed", chunk.len())));
        }
        self.received += chunk.len() as u64;
        if self.received > self.expected {
            Err(self.size_differs("has at least"))
        } else {
            Ok(Some(chunk.into()))
        }
    }

    fn size_differs(&self, what: &str) -> ApiError {
        let Body { expected, received, .. } = self;
        ApiError::field("header.size_bytes", format!("is {expected}, but the file {what} {received} bytes"))
    }

    async fn message(&mut self) -> Result<Option<Part>, ApiError> {
        let late = |_| ApiError::Late { message: format!("nothing came for {} s", SILENCE.as_secs()) };
        let message = tokio::time::timeout(SILENCE, self.requests.message()).await.map_err(late)??;
        match message.map(|request| request.part) {
            Some(None) => Err(ApiError::field("part", "a message holds a header or a chunk")),
            part => Ok(part.flatten()),
        }
    }
}

async fn dataset(
    store: &Store,
    digest: &Digest,
    mut check: ContentCheck,
    mut body: Body,
) -> Result<pb::UploadFileResponse, ApiError> {
    let path = layout::dataset(digest);
    if store.size(&path).await?.is_some() {
        return Ok(pb::UploadFileResponse { already_present: true, examples: 0 });
    }
    let (mut upload, mut hasher) = (store.upload(&path), Hasher::new());
    while let Some(chunk) = body.chunk().await? {
        hasher.update(&chunk);
        check.push(chunk.clone()).await?;
        upload.write(chunk).await?;
    }
    let examples = check.finish().await?;
    check_digest("the data set", &hasher.finish(), digest)?;
    upload.finish().await?;
    tracing::info!(%digest, bytes = body.received, examples, "data set stored");
    Ok(pb::UploadFileResponse { already_present: false, examples })
}

async fn base_file(
    store: &Store,
    base: &Digest,
    name: &FileName,
    digest: &Digest,
    mut body: Body,
) -> Result<pb::UploadFileResponse, ApiError> {
    // A whole base's files are never written again.
    if base_is_whole(store, base).await? {
        return Ok(pb::UploadFileResponse { already_present: true, examples: 0 });
    }
    let (mut upload, mut hasher) = (store.upload(&layout::base_file(base, name)), Hasher::new());
    while let Some(chunk) = body.chunk().await? {
        hasher.update(&chunk);
        upload.write(chunk).await?;
    }
    check_digest(name.as_str(), &hasher.finish(), digest)?;
    upload.finish().await?;
    Ok(pb::UploadFileResponse { already_present: false, examples: 0 })
}

/// SHA256SUMS makes a base whole, so what it lists must be there, byte for byte.
async fn sums(store: &Store, base: &Digest, mut body: Body) -> Result<pb::UploadFileResponse, ApiError> {
    if base_is_whole(store, base).await? {
        return Ok(pb::UploadFileResponse { already_present: true, examples: 0 });
    }
    let mut text = Vec::new();
    while let Some(chunk) = body.chunk().await? {
        text.extend_from_slice(&chunk);
    }
    check_digest(layout::SUMS, &Digest::of(&text), base)?;
    let bad = |message: String| ApiError::field("chunk", message);
    let listed =
        std::str::from_utf8(&text).map_err(|error| bad(format!("{} is not UTF-8: {error}", layout::SUMS)))?;
    let listed = Sums::parse(listed).map_err(|error| bad(error.to_string()))?;
    for (name, digest) in listed.files() {
        verify_stored(store, base, name, digest).await?;
    }
    // Of several uploads of one base all have the same text.
    store.put_if_absent(&layout::base_sums(base), text.into()).await?;
    tracing::info!(%base, files = listed.files().len(), "base stored");
    Ok(pb::UploadFileResponse { already_present: false, examples: 0 })
}

async fn verify_stored(
    store: &Store,
    base: &Digest,
    name: &FileName,
    digest: &Digest,
) -> Result<(), ApiError> {
    let path = layout::base_file(base, name);
    let mut reader = match store.read(&path).await {
        Err(error) if error.is_not_found() => {
            let message = format!("{} lists {name}, which was not uploaded; send it first", layout::SUMS);
            return Err(ApiError::Precondition { message, reason: "BASE_FILE_MISSING" });
        }
        other => other?,
    };
    let mut hasher = Hasher::new();
    while let Some(bytes) = reader.next().await? {
        hasher.update(&bytes);
    }
    let found = hasher.finish();
    if found == *digest {
        return Ok(());
    }
    // So that StatArtifact no longer says it is there, and the next try sends it.
    store.delete(&path).await?;
    check_digest(name.as_str(), &found, digest)
}

fn check_digest(what: &str, found: &Digest, expected: &Digest) -> Result<(), ApiError> {
    if found == expected {
        return Ok(());
    }
    let message = format!("{what} has the sha256 {found}, not {expected}; send it again");
    Err(ApiError::DataLoss { message, reason: "DIGEST_MISMATCH" })
}
