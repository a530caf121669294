//! Files to and from the fleet's store, through the coordinator, checked by their digests.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use crate::{
    client::{Client, Line},
    error::ClientError,
    files::{LocalFile, is_plain_name},
    pb::{
        self, artifact_ref::Place, artifacts_client::ArtifactsClient, download_file_response as down,
        upload_file_request as up,
    },
    retry::{Backoff, idempotent, is_transient, jitter},
};

/// Largest chunk that the API allows.
const CHUNK: usize = 1 << 20;
/// Chunks read ahead of the network.
const READ_AHEAD: usize = 4;
/// A download that brings nothing for this long has failed.
const STALL: Duration = Duration::from_secs(60);
/// The coordinator may take this long to copy a data set from another store.
const IMPORT: Duration = Duration::from_secs(6 * 3600);
/// An upload gets a minute, and a second for every so many bytes.
const SLOWEST_BYTES_PER_SECOND: u64 = 64 << 10;
/// A broken download is begun again so many times.
const DOWNLOAD_TRIES: u32 = 5;

/// Told how many bytes of a file have gone over the network so far.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// Makes the [`Progress`] of a file from its name and its size in bytes (0: not known).
pub type ProgressFor<'a> = &'a dyn Fn(&str, u64) -> Progress;

/// What came of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uploaded {
    /// It was in the store already: nothing was sent.
    pub already_present: bool,
    /// Rows that hold an example, for a data set that was sent.
    pub examples: u64,
}

/// The place of a data set.
pub fn dataset(sha256: &str) -> pb::ArtifactRef {
    pb::ArtifactRef { place: Some(Place::DatasetSha256(sha256.to_owned())) }
}

/// The place of a file of a base; `sha256` (the file's) is needed for an upload only.
pub fn base_file(base_sha256: &str, name: &str, sha256: &str) -> pb::ArtifactRef {
    let (base_sha256, name, sha256) = (base_sha256.to_owned(), name.to_owned(), sha256.to_owned());
    pb::ArtifactRef { place: Some(Place::BaseFile(pb::BaseFile { base_sha256, name, sha256 })) }
}

/// The place of a file of a checkpoint (`jobs/{id}/checkpoints/{checkpoint}`).
pub fn checkpoint_file(checkpoint: &str, name: &str) -> pb::ArtifactRef {
    let (checkpoint, name) = (checkpoint.to_owned(), name.to_owned());
    pb::ArtifactRef { place: Some(Place::CheckpointFile(pb::CheckpointFileRef { checkpoint, name })) }
}

impl Client {
    /// Whether the store has it, and how many bytes.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn stat(&self, artifact: &pb::ArtifactRef) -> Result<Option<u64>, ClientError> {
        let request = pb::StatArtifactRequest { artifact: Some(artifact.clone()) };
        let answer: pb::StatArtifactResponse = self
            .unary(request, |channel, request| async move { artifacts(channel).stat_artifact(request).await })
            .await?;
        Ok(answer.present.then_some(answer.size_bytes))
    }

    /// Sends a file unless the store has it. `progress` is told how many of its bytes are sent, and starts over when
    /// a broken upload is begun again.
    ///
    /// # Errors
    /// `File` when the file cannot be read, and those of any call.
    pub async fn upload(
        &self,
        artifact: &pb::ArtifactRef,
        file: &LocalFile,
        progress: &Progress,
    ) -> Result<Uploaded, ClientError> {
        self.upload_checked(artifact, file, None, progress).await
    }

    /// Sends a file of a data set unless the store has it; `hint` says how its rows are to be read.
    ///
    /// # Errors
    /// `Invalid` with the place of the first bad row; `File` when the file cannot be read.
    pub async fn upload_data(
        &self,
        file: &LocalFile,
        hint: pb::DataHint,
        progress: &Progress,
    ) -> Result<Uploaded, ClientError> {
        self.upload_checked(&dataset(&file.sha256), file, Some(hint), progress).await
    }

    async fn upload_checked(
        &self,
        artifact: &pb::ArtifactRef,
        file: &LocalFile,
        hint: Option<pb::DataHint>,
        progress: &Progress,
    ) -> Result<Uploaded, ClientError> {
        if self.stat(artifact).await?.is_some() {
            progress(file.size);
            return Ok(Uploaded { already_present: true, examples: 0 });
        }
        let unreadable = Arc::new(OnceLock::new());
        let header = pb::UploadHeader { artifact: Some(artifact.clone()), size_bytes: file.size, data: hint };
        let sent = idempotent(|| self.send(header.clone(), file, progress, &unreadable)).await;
        match (sent, Arc::into_inner(unreadable).and_then(OnceLock::into_inner)) {
            (Ok(answer), _) => {
                Ok(Uploaded { already_present: answer.already_present, examples: answer.examples })
            }
            (Err(_), Some(source)) => Err(ClientError::File { path: file.path.clone(), source }),
            (Err(status), None) => Err(self.error(&status)),
        }
    }

    /// Sends a few bytes, which need no progress.
    pub(crate) async fn upload_bytes(
        &self,
        artifact: &pb::ArtifactRef,
        bytes: Vec<u8>,
    ) -> Result<(), ClientError> {
        let size_bytes = bytes.len() as u64;
        let header = pb::UploadHeader { artifact: Some(artifact.clone()), size_bytes, data: None };
        let mut parts = vec![up::Part::Header(header)];
        parts.extend(bytes.chunks(CHUNK).map(|chunk| up::Part::Chunk(chunk.to_vec())));
        let messages = parts.into_iter().map(|part| pb::UploadFileRequest { part: Some(part) });
        let messages: Vec<_> = messages.collect();
        let sent = idempotent(|| {
            let mut request = Request::new(tokio_stream::iter(messages.clone()));
            request.set_timeout(STALL);
            let mut client = artifacts(self.channel.clone());
            async move { client.upload_file(request).await }
        });
        sent.await.map(drop).map_err(|status| self.error(&status))
    }

    async fn send(
        &self,
        header: pb::UploadHeader,
        file: &LocalFile,
        progress: &Progress,
        unreadable: &Arc<OnceLock<io::Error>>,
    ) -> Result<pb::UploadFileResponse, Status> {
        let (parts, receiver) = mpsc::channel(READ_AHEAD);
        let (path, progress, unreadable) = (file.path.clone(), progress.clone(), unreadable.clone());
        let reader = tokio::task::spawn_blocking(move || {
            if let Err(error) = read_parts(&path, header, &parts, &progress) {
                // The first reason stays; a second try of the same file would only repeat it.
                let _ = unreadable.set(error);
            }
        });
        let mut request = Request::new(ReceiverStream::new(receiver));
        request.set_timeout(STALL + Duration::from_secs(file.size / SLOWEST_BYTES_PER_SECOND));
        let answer = artifacts(self.channel.clone()).upload_file(request).await;
        // The reader ends by itself: at the end of the file, or when the call dropped its receiver.
        reader.await.map_err(|error| Status::aborted(error.to_string()))?;
        Ok(answer?.into_inner())
    }

    /// Has the coordinator copy a data set from another object store: its files, each by its digest.
    ///
    /// # Errors
    /// `Invalid` for a URL that cannot be read, with the place of the first bad row.
    pub async fn import_data(
        &self,
        url: &str,
        hint: pb::DataHint,
    ) -> Result<pb::ImportDataResponse, ClientError> {
        let imported = idempotent(|| {
            let mut request =
                Request::new(pb::ImportDataRequest { url: url.to_owned(), data: Some(hint.clone()) });
            request.set_timeout(IMPORT);
            let mut client = artifacts(self.channel.clone());
            async move { client.import_data(request).await }
        });
        imported.await.map(tonic::Response::into_inner).map_err(|status| self.error(&status))
    }

    /// Receives a file into `folder/name`, which appears there only when it is whole and has the digest `sha256`
    /// (where one is known). A broken transfer is begun again a few times. Returns its digest.
    ///
    /// # Errors
    /// `NotFound`; `Damaged` when the digest differs; `File` when it cannot be written.
    pub async fn download(
        &self,
        artifact: &pb::ArtifactRef,
        folder: &Path,
        name: &str,
        sha256: Option<&str>,
        progress: &Progress,
    ) -> Result<String, ClientError> {
        if !is_plain_name(name) {
            return Err(ClientError::Protocol(format!("'{name}' cannot be the name of a file")));
        }
        let part = folder.join(format!(".{name}.{}.part", std::process::id()));
        let received = self.receive(artifact, &part, progress).await;
        let placed = received.and_then(|found| match sha256 {
            Some(expected) if expected != found => {
                Err(ClientError::Damaged { what: name.to_owned(), expected: expected.to_owned(), found })
            }
            _ => {
                let whole = folder.join(name);
                std::fs::rename(&part, &whole).map_err(ClientError::file(&whole)).map(|()| found)
            }
        });
        if placed.is_err() {
            // Already failing; a leftover part is only untidy.
            let _ = std::fs::remove_file(&part);
        }
        placed
    }

    /// Receives a file into `part`, from its start again when the connection breaks.
    async fn receive(
        &self,
        artifact: &pb::ArtifactRef,
        part: &Path,
        progress: &Progress,
    ) -> Result<String, ClientError> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        for tries_left in (0..DOWNLOAD_TRIES).rev() {
            match self.receive_once(artifact, part, progress).await {
                Err(Broken::Network(status)) if tries_left > 0 && is_transient(&status) => {
                    tokio::time::sleep(backoff.wait(jitter())).await;
                }
                Err(Broken::Network(status)) => return Err(self.error(&status)),
                Err(Broken::Here(error)) => return Err(error),
                Ok(digest) => return Ok(digest),
            }
        }
        unreachable!("the last try returns")
    }

    async fn receive_once(
        &self,
        artifact: &pb::ArtifactRef,
        part: &Path,
        progress: &Progress,
    ) -> Result<String, Broken> {
        let request = pb::DownloadFileRequest { artifact: Some(artifact.clone()) };
        let mut client = artifacts(self.channel.clone());
        let answer = tokio::time::timeout(STALL, client.download_file(request)).await;
        let mut stream = answer.map_err(|_| stalled())??.into_inner();
        let Some(down::Part::Header(header)) = next(&mut stream).await? else {
            return Err(Broken::Here(ClientError::Protocol("a download began without its header".into())));
        };
        let mut file = File::create(part).map_err(ClientError::file(part))?;
        let (mut hash, mut size) = (Sha256::new(), 0);
        while let Some(next) = next(&mut stream).await? {
            let down::Part::Chunk(chunk) = next else {
                return Err(Broken::Here(ClientError::Protocol("a download has two headers".into())));
            };
            file.write_all(&chunk).map_err(ClientError::file(part))?;
            hash.update(&chunk);
            size += chunk.len() as u64;
            progress(size);
        }
        if size != header.size_bytes {
            return Err(Broken::Network(Status::unavailable(format!(
                "the download ended after {size} of {} bytes",
                header.size_bytes
            ))));
        }
        file.sync_all().map_err(ClientError::file(part))?;
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Why a transfer ended early: only a broken network is worth another try.
enum Broken {
    Network(Status),
    Here(ClientError),
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        Self::Network(status)
    }
}

impl From<ClientError> for Broken {
    fn from(error: ClientError) -> Self {
        Self::Here(error)
    }
}

fn stalled() -> Status {
    Status::unavailable(format!("nothing came for {} seconds", STALL.as_secs()))
}

async fn next(stream: &mut Streaming<pb::DownloadFileResponse>) -> Result<Option<down::Part>, Status> {
    let message = tokio::time::timeout(STALL, stream.message()).await.map_err(|_| stalled())??;
    message
        .map(|message| message.part.ok_or_else(|| Status::internal("a download has an empty part")))
        .transpose()
}

/// Reads a file into the parts of an upload; stops quietly when nobody takes them any more. Blocks.
fn read_parts(
    path: &Path,
    header: pb::UploadHeader,
    parts: &mpsc::Sender<pb::UploadFileRequest>,
    progress: &Progress,
) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut part = up::Part::Header(header);
    let mut sent = 0;
    loop {
        if parts.blocking_send(pb::UploadFileRequest { part: Some(part) }).is_err() {
            return Ok(());
        }
        progress(sent);
        let mut chunk = vec![0; CHUNK];
        let n = file.read(&mut chunk)?;
        if n == 0 {
            return Ok(());
        }
        chunk.truncate(n);
        sent += n as u64;
        part = up::Part::Chunk(chunk);
    }
}

fn artifacts(channel: Line) -> ArtifactsClient<Line> {
    ArtifactsClient::new(channel).max_decoding_message_size(4 * CHUNK)
}
