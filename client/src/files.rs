//! Local files with the digests that name them in the store.

use std::path::{Path, PathBuf};

use lorafleet_spec::digest;

use crate::error::ClientError;

/// The file that lists a base's files with their digests; its own digest is the base's.
pub(crate) const SUMS: &str = "SHA256SUMS";

/// A local file, its size in bytes and its lower-case hex sha256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Lower-case hex.
    pub sha256: String,
}

impl LocalFile {
    /// Reads a file once for its digest. Blocks.
    ///
    /// # Errors
    /// `File` when it cannot be read.
    pub fn read(path: &Path) -> Result<Self, ClientError> {
        let (size, sha256) = digest::hash_file(path).map_err(ClientError::file(path))?;
        Ok(Self { path: path.to_owned(), size, sha256 })
    }
}

/// Whether a file name from the network may be created in a folder: one plain component, nothing hidden.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && name.len() <= 255 && !name.contains(['/', '\\', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named() {
        let error = LocalFile::read(Path::new("/nowhere/at/all")).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/at/all: "), "{error}");
    }

    #[test]
    fn only_plain_names_are_created() {
        assert!(is_plain_name("model-00001-of-00002.safetensors"));
        for bad in ["", "..", ".hidden", "a/b", "a\\b"] {
            assert!(!is_plain_name(bad), "{bad:?}");
        }
    }
}
