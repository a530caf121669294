//! The Artifacts service: what goes into object storage through the coordinator, and what comes out of it.

mod content;
mod download;
mod import;
mod place;
mod upload;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use lorafleet_proto::v1 as pb;
use lorafleet_store::Store;
use sqlx::PgPool;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status, Streaming};

use self::place::Place;
use super::error::ApiError;
use crate::{access::Caller, db::within, ids::JobId, queue};

/// Bytes of one chunk, in either direction.
pub(crate) const CHUNK: usize = 1 << 20;
/// Largest request: a chunk and its frame.
pub(crate) const MESSAGE_LIMIT: usize = CHUNK + (64 << 10);
/// Uploads at once. Each holds up to four parts of 8 MiB, so they bound the memory that this service takes.
const UPLOADS: usize = 8;
/// How long an upload waits for its turn.
const TURN: Duration = Duration::from_secs(60);

/// The service, over one store.
#[derive(Debug, Clone)]
pub struct ArtifactsService {
    store: Store,
    pool: PgPool,
    uploads: Arc<Semaphore>,
}

impl ArtifactsService {
    /// A service that reads and writes this store; the database tells whose a job is.
    pub fn new(store: Store, pool: PgPool) -> Self {
        Self { store, pool, uploads: Arc::new(Semaphore::new(UPLOADS)) }
    }

    /// As a gRPC service, with its limit of message sizes.
    pub fn into_server(self) -> pb::artifacts_server::ArtifactsServer<Self> {
        pb::artifacts_server::ArtifactsServer::new(self).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// The place that a caller names. Checkpoints of another tenant's jobs are not there, for a caller that speaks for one
    /// only. Data sets and bases belong to whoever knows their digest.
    async fn place_of(&self, caller: &Caller, artifact: Option<pb::ArtifactRef>) -> Result<Place, ApiError> {
        let place = Place::parse("artifact", artifact)?;
        if let (Some(tenant), Place::Checkpoint { job, .. }) = (caller.scope(), &place) {
            let job = JobId::from_name(&format!("jobs/{job}")).map_err(|e| ApiError::name("artifact", &e))?;
            if !within(queue::belongs(&self.pool, job, tenant)).await? {
                return Err(download::not_found(&place));
            }
        }
        Ok(place)
    }

    async fn stat(
        &self,
        caller: &Caller,
        request: pb::StatArtifactRequest,
    ) -> Result<pb::StatArtifactResponse, ApiError> {
        let place = self.place_of(caller, request.artifact).await?;
        let size = self.store.size(&place.path()).await?;
        Ok(pb::StatArtifactResponse { present: size.is_some(), size_bytes: size.unwrap_or_default() })
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        match tokio::time::timeout(TURN, Arc::clone(&self.uploads).acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(ApiError::Exhausted {
                message: format!("{UPLOADS} uploads are under way; try again later"),
                reason: "TOO_MANY_UPLOADS",
            }),
        }
    }
}

#[tonic::async_trait]
impl pb::artifacts_server::Artifacts for ArtifactsService {
    type DownloadFileStream = Pin<Box<dyn Stream<Item = Result<pb::DownloadFileResponse, Status>> + Send>>;

    async fn stat_artifact(
        &self,
        request: Request<pb::StatArtifactRequest>,
    ) -> Result<Response<pb::StatArtifactResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.stat(&caller, request.into_inner()).await?))
    }

    async fn upload_file(
        &self,
        request: Request<Streaming<pb::UploadFileRequest>>,
    ) -> Result<Response<pb::UploadFileResponse>, Status> {
        let _turn = self.turn().await?;
        Ok(Response::new(upload::receive(&self.store, request.into_inner()).await?))
    }

    async fn import_data(
        &self,
        request: Request<pb::ImportDataRequest>,
    ) -> Result<Response<pb::ImportDataResponse>, Status> {
        let _turn = self.turn().await?;
        Ok(Response::new(import::import(&self.store, request.into_inner()).await?))
    }

    async fn download_file(
        &self,
        request: Request<pb::DownloadFileRequest>,
    ) -> Result<Response<Self::DownloadFileStream>, Status> {
        let caller = Caller::of(&request)?;
        let place = self.place_of(&caller, request.into_inner().artifact).await?;
        let stream = download::send(&self.store, &place).await?;
        Ok(Response::new(Box::pin(stream)))
    }
}

#[cfg(test)]
mod tests;
