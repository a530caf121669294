//! What can go wrong with the store, told apart by what a caller can do about it.

use object_store::path::Path;

use crate::{InvalidId, ManifestError, SumsError};

/// Why something in the store could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL names no store; a person must change it.
    #[error(
        "{url:?} is no store: {reason}; examples: file:///var/lib/lorafleet/store, s3://bucket/prefix, \
         gs://bucket/prefix, az://container/prefix"
    )]
    Url {
        /// The URL that was given.
        url: String,
        /// What is wrong with it, or with the environment variables that belong to it.
        reason: String,
    },
    /// The store was found but takes no writes.
    #[error("the store {url} cannot be written: {source}")]
    NotWritable {
        /// The store.
        url: String,
        /// Why not.
        source: Box<StoreError>,
    },
    /// Nothing is there.
    #[error("{path} is not in the store")]
    NotFound {
        /// Where nothing is.
        path: Path,
    },
    /// The store refuses for a reason that trying again does not change.
    #[error("the store refuses to {action} {path}: {source}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: Path,
        /// What the store said.
        source: object_store::Error,
    },
    /// The store could not be reached, or not in time; trying later may help.
    #[error("cannot {action} {path} after {attempts} attempts: {reason}")]
    Unavailable {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: Path,
        /// How often it was tried.
        attempts: u32,
        /// The last attempt's error.
        reason: String,
    },
    /// Something is larger than this reader takes.
    #[error("{path} has {size} bytes, more than the limit of {limit}")]
    TooLarge {
        /// Where.
        path: Path,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The stored bytes are not those that were written.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// Where.
        path: Path,
        /// What differs.
        reason: String,
    },
    /// Another writer's manifest lies where ours should: under one fence there is one writer.
    #[error("{path} was written by another process with other contents; this writer has lost its place")]
    Conflict {
        /// The manifest.
        path: Path,
    },
    /// A manifest cannot be used.
    #[error("{path}: {source}")]
    Manifest {
        /// Where.
        path: Path,
        /// What is wrong.
        source: ManifestError,
    },
    /// A SHA256SUMS cannot be used.
    #[error("{path}: {source}")]
    Sums {
        /// Where.
        path: Path,
        /// What is wrong.
        source: SumsError,
    },
    /// A name cannot be part of a place in the store.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// A file of this machine could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Local {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl StoreError {
    /// Nothing is there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, StoreError::NotFound { .. })
    }

    /// Trying again later may help.
    pub fn is_transient(&self) -> bool {
        match self {
            StoreError::Unavailable { .. } => true,
            StoreError::NotWritable { source, .. } => source.is_transient(),
            _ => false,
        }
    }
}
