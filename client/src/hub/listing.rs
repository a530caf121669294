//! What a repository of the hub holds at one commit.

use serde::Deserialize;

use super::is_plain_hex;

/// A repository at a commit.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    /// The commit.
    #[serde(rename = "sha")]
    pub commit: String,
    /// Its files.
    #[serde(default)]
    siblings: Vec<RemoteFile>,
}

/// One file of it.
#[derive(Debug, Deserialize)]
pub(super) struct RemoteFile {
    /// Its name.
    #[serde(rename = "rfilename")]
    pub name: String,
    /// Bytes.
    pub size: Option<u64>,
    /// Git's name of its content.
    #[serde(rename = "blobId")]
    blob: Option<String>,
    /// Where it is large.
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Listing {
    /// Reads the hub's answer; none when it is not what the hub sends.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut listing: Self = serde_json::from_slice(bytes).ok()?;
        for file in &mut listing.siblings {
            file.size = file.lfs.as_ref().and_then(|lfs| lfs.size).or(file.size);
        }
        is_plain_hex(&listing.commit).then_some(listing)
    }

    /// Names of all files.
    pub fn names(&self) -> Vec<String> {
        self.siblings.iter().map(|file| file.name.clone()).collect()
    }

    /// A file by its name.
    pub fn file(&self, name: &str) -> Option<&RemoteFile> {
        self.siblings.iter().find(|file| file.name == name)
    }
}

impl RemoteFile {
    /// The sha256 of its bytes, which the hub knows of large files.
    pub fn sha256(&self) -> Option<&str> {
        self.lfs.as_ref()?.sha256.as_deref().filter(|sha256| is_plain_hex(sha256))
    }

    /// What its bytes are called in the cache.
    pub fn blob(&self) -> Option<&str> {
        self.sha256().or(self.blob.as_deref().filter(|blob| is_plain_hex(blob)))
    }
}
