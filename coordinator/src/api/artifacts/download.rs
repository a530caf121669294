//! One download: a header, then bytes, read from the store no faster than the client takes them.

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use lorafleet_proto::v1 as pb;
use lorafleet_store::{Reader, Store, base_is_whole, find_checkpoint, layout};
use pb::download_file_response::Part;
use tonic::Status;

use super::place::Place;
use super::{ApiError, CHUNK};

/// Begins to send one file.
pub(super) async fn send(
    store: &Store,
    place: &Place,
) -> Result<impl Stream<Item = Result<pb::DownloadFileResponse, Status>> + Send + use<>, ApiError> {
    if !is_part_of_a_whole(store, place).await? {
        return Err(not_found(place));
    }
    let reader = match store.read(&place.path()).await {
        Err(error) if error.is_not_found() => return Err(not_found(place)),
        other => other?,
    };
    let header = pb::DownloadHeader { size_bytes: reader.size() };
    let chunks = stream::try_unfold((reader, Bytes::new()), next_chunk);
    let parts = chunks.map(|chunk| chunk.map(|chunk| Part::Chunk(chunk.into())));
    let all = stream::iter([Ok(Part::Header(header))]).chain(parts);
    Ok(all.map(|part| {
        part.map(|part| pb::DownloadFileResponse { part: Some(part) }).map_err(|error: ApiError| error.into())
    }))
}

/// Cuts what the store gives at once into messages.
async fn next_chunk(
    (mut reader, mut rest): (Reader, Bytes),
) -> Result<Option<(Bytes, (Reader, Bytes))>, ApiError> {
    if rest.is_empty() {
        rest = match reader.next().await? {
            Some(bytes) => bytes,
            None => return Ok(None),
        };
    }
    let chunk = rest.split_to(rest.len().min(CHUNK));
    Ok(Some((chunk, (reader, rest))))
}

/// Files of unfinished bases and torn checkpoints are nobody's business.
async fn is_part_of_a_whole(store: &Store, place: &Place) -> Result<bool, ApiError> {
    Ok(match place {
        Place::Dataset(_) => true,
        Place::Base { base, .. } => base_is_whole(store, base).await?,
        Place::Checkpoint { job, id, name } => {
            let checkpoint = find_checkpoint(store, job, id).await?;
            checkpoint.is_some_and(|whole| {
                name.as_str() == layout::MANIFEST || whole.manifest.files.contains_key(name)
            })
        }
    })
}

pub(super) fn not_found(place: &Place) -> ApiError {
    ApiError::NotFound { what: format!("artifact {}", place.path()), reason: "ARTIFACT_NOT_FOUND" }
}
