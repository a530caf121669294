//! Object storage: one way to read and write it, the places of things in it, and checkpoints that are whole or not there.
//!
//! [`Store`] wraps any `object_store` URL (`file://`, `s3://`, `gs://`, `az://`, `memory://`) with retries, deadlines
//! and bounded memory. [`layout`] says where things lie. [`write_checkpoint`] and its companions keep the promise that
//! a checkpoint which is listed can be read.

#![forbid(unsafe_code)]

mod base;
mod checkpoint;
mod contents;
mod digest;
mod error;
mod ids;
pub mod layout;
mod manifest;
mod open;
mod read;
mod retry;
mod store;
mod sums;
mod sweep;
mod upload;

pub use base::{base_is_whole, download_base, read_sums};
pub use checkpoint::{
    Checkpoint, Draft, delete_checkpoint, files_are_there, find_checkpoint, list_checkpoints,
    read_checkpoint, write_checkpoint,
};
pub use contents::Contents;
pub use digest::{Digest, Hasher};
pub use error::StoreError;
pub use ids::{CheckpointId, FileName, InvalidId, JobId};
pub use lorafleet_proto::v1::Fence;
pub use manifest::{FileEntry, Manifest, ManifestError};
pub use object_store::path::Path;
pub use read::Reader;
pub use retry::Retry;
pub use store::{Object, Put, Store};
pub use sums::{Sums, SumsError};
pub use sweep::sweep_torn;
pub use upload::Upload;

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, StoreError>;
