//! The manifest of a checkpoint: what makes its files one whole, and where training goes on from it.

use std::collections::BTreeMap;

use lorafleet_proto::v1::Fence;
use serde::{Deserialize, Serialize};

use crate::{CheckpointId, Digest, FileName, InvalidId, JobId};

/// The version that this program writes, and the newest that it reads.
const VERSION: u32 = 1;
/// Files of one checkpoint at most.
const FILES_LIMIT: usize = 64;

/// One file of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its digest.
    pub sha256: Digest,
}

/// What `manifest.json` says. The same state written under the same fence gives the same bytes, so that a writer can
/// tell its own manifest from another's; therefore it holds no time of day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format.
    pub version: u32,
    /// The job.
    pub job: JobId,
    /// The checkpoint itself: step and fence.
    pub checkpoint: CheckpointId,
    /// The checkpoint that the attempt resumed from; none where it began from scratch.
    pub parent: Option<CheckpointId>,
    /// It is the job's result.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// The next step to compute. With the job's seed it gives the next examples and the state of every draw: order and
    /// draws are functions of (seed, step).
    pub next_step: u64,
    /// sha256 of the job's stored spec.
    pub spec_sha256: Digest,
    /// The kind of the worker that wrote it: same kind, same bits.
    pub kind: String,
    /// Sums of gradients are integers of 2^-scale_bits; 0 where they are not exact.
    pub scale_bits: u32,
    /// The files, sorted by name.
    pub files: BTreeMap<FileName, FileEntry>,
}

/// Why bytes are no manifest that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of this shape.
    #[error("the manifest cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// Written by a newer program.
    #[error(
        "the manifest has version {found}; this program reads up to {VERSION}: use the newer program that wrote it"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// It lies where another checkpoint's should.
    #[error("the manifest is that of {found}, not of {expected}")]
    Elsewhere {
        /// By its contents.
        found: String,
        /// By its place.
        expected: String,
    },
    /// Its parts contradict each other.
    #[error("the manifest contradicts itself: {0}")]
    Contradiction(&'static str),
    /// A name cannot be part of one.
    #[error(transparent)]
    Id(#[from] InvalidId),
}

impl Manifest {
    /// The version that this program writes.
    pub const VERSION: u32 = VERSION;

    /// The fence under which it was written.
    pub fn fence(&self) -> Fence {
        self.checkpoint.fence()
    }

    /// The text of `manifest.json`.
    ///
    /// # Errors
    /// [`ManifestError::Contradiction`]: what could not be read again is not written.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads the text of `manifest.json`.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        // First, since a newer version may have any other shape.
        let Version { version: found } = serde_json::from_slice(bytes)?;
        if found > VERSION {
            return Err(ManifestError::Version { found });
        }
        let manifest: Manifest = serde_json::from_slice(bytes)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Whether it belongs to this job and checkpoint.
    pub(crate) fn belongs_to(&self, job: &JobId, id: &CheckpointId) -> Result<(), ManifestError> {
        if self.job == *job && self.checkpoint == *id {
            return Ok(());
        }
        let (found, expected) = (self.checkpoint.resource_name(&self.job), id.resource_name(job));
        Err(ManifestError::Elsewhere { found, expected })
    }

    fn check(&self) -> Result<(), ManifestError> {
        let contradiction = |what| Err(ManifestError::Contradiction(what));
        if self.version != VERSION {
            return contradiction("its version is not one that was ever written");
        }
        if self.next_step != self.checkpoint.step() + 1 {
            return contradiction("next_step does not follow the checkpoint's step");
        }
        if self.parent.as_ref().is_some_and(|parent| parent.step() > self.checkpoint.step()) {
            return contradiction("its parent is of a later step");
        }
        if self.files.is_empty() || self.files.len() > FILES_LIMIT {
            return contradiction("it must list 1 to 64 files");
        }
        if self.files.keys().any(|name| name.as_str() == crate::layout::MANIFEST) {
            return contradiction("it lists itself");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> Manifest {
        let fence = Fence { attempt: 2, generation: 1, generation_id: "0123456789abcdef".into() };
        let id = CheckpointId::new(100, &fence).unwrap();
        let file = FileEntry { size_bytes: 7, sha256: Digest::of(b"weights") };
        Manifest {
            version: VERSION,
            job: "0192f0c1".parse().unwrap(),
            parent: Some(CheckpointId::new(50, &fence).unwrap()),
            next_step: 101,
            checkpoint: id,
            is_final: false,
            spec_sha256: Digest::of(b"spec"),
            kind: "cpu".into(),
            scale_bits: 36,
            files: [("adapter_model.safetensors".parse().unwrap(), file)].into(),
        }
    }

    #[test]
    fn its_text_is_the_contract() {
        let text = String::from_utf8(example().to_bytes().unwrap()).unwrap();
        let expected = format!(
            r#"{{
  "version": 1,
  "job": "0192f0c1",
  "checkpoint": "0000000100-0002-0001-0123456789abcdef",
  "parent": "0000000050-0002-0001-0123456789abcdef",
  "final": false,
  "next_step": 101,
  "spec_sha256": "{}",
  "kind": "cpu",
  "scale_bits": 36,
  "files": {{
    "adapter_model.safetensors": {{
      "size_bytes": 7,
      "sha256": "{}"
    }}
  }}
}}
"#,
            Digest::of(b"spec"),
            Digest::of(b"weights")
        );
        assert_eq!(text, expected);
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap(), example());
    }

    #[test]
    fn wrong_ones_are_refused() {
        let newer = Manifest { version: 2, ..example() };
        let newer = serde_json::to_vec(&newer).unwrap();
        assert!(matches!(Manifest::parse(&newer), Err(ManifestError::Version { found: 2 })));
        let name = |text: &str| text.parse::<FileName>().unwrap();
        let entry = FileEntry { size_bytes: 0, sha256: Digest::of(b"") };
        for wrong in [
            Manifest { version: 0, ..example() },
            Manifest { next_step: 100, ..example() },
            Manifest { files: [].into(), ..example() },
            Manifest { files: [(name("manifest.json"), entry)].into(), ..example() },
            Manifest { parent: Some(CheckpointId::new(101, &example().fence()).unwrap()), ..example() },
        ] {
            assert!(matches!(wrong.to_bytes(), Err(ManifestError::Contradiction(_))), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_passes_as_the_same(at in 0usize..500, to in any::<u8>()) {
            let mut bytes = example().to_bytes().unwrap();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != to && !(bytes[at].is_ascii_whitespace() && to.is_ascii_whitespace()));
            bytes[at] = to;
            if let Ok(read) = Manifest::parse(&bytes) {
                prop_assert_ne!(read, example());
            }
        }
    }
}
