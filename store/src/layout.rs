//! Where things lie below the store's root.
//!
//! ```text
//! bases/{sha256}/{SHA256SUMS, config.json, model.safetensors, …}
//! datasets/{sha256}
//! jobs/{job}/checkpoints/{checkpoint}/{adapter_config.json, adapter_model.safetensors, optimizer.safetensors, manifest.json}
//! adapters/{adapter}/{adapter_config.json, adapter_model.safetensors, metrics.json}
//! ```

use object_store::path::Path;

use crate::{CheckpointId, Digest, FileName, JobId};

/// The file that makes a base whole: its digest is the base's, and it lists the digests of all others.
pub const SUMS: &str = "SHA256SUMS";
/// The file that makes a checkpoint whole.
pub const MANIFEST: &str = "manifest.json";

/// A data set, by the digest of its bytes.
pub fn dataset(digest: &Digest) -> Path {
    Path::from_iter(["datasets".to_owned(), digest.to_string()])
}

/// The folder of a base, by the digest of its SHA256SUMS.
pub fn base(digest: &Digest) -> Path {
    Path::from_iter(["bases".to_owned(), digest.to_string()])
}

/// A file of a base.
pub fn base_file(digest: &Digest, name: &FileName) -> Path {
    base(digest).join(name.as_str())
}

/// A base's SHA256SUMS.
pub fn base_sums(digest: &Digest) -> Path {
    base(digest).join(SUMS)
}

/// The folder of a job's checkpoints.
pub fn checkpoints(job: &JobId) -> Path {
    Path::from_iter(["jobs", job.as_str(), "checkpoints"])
}

/// The folder of a checkpoint.
pub fn checkpoint(job: &JobId, id: &CheckpointId) -> Path {
    checkpoints(job).join(id.to_string())
}

/// A file of a checkpoint.
pub fn checkpoint_file(job: &JobId, id: &CheckpointId, name: &FileName) -> Path {
    checkpoint(job, id).join(name.as_str())
}

/// A checkpoint's manifest.
pub fn manifest(job: &JobId, id: &CheckpointId) -> Path {
    checkpoint(job, id).join(MANIFEST)
}

#[cfg(test)]
mod tests {
    use lorafleet_proto::v1::Fence;

    use super::*;

    #[test]
    fn places_are_what_the_documentation_says() {
        let digest = Digest::of(b"abc");
        let job: JobId = "j-1".parse().unwrap();
        let fence = Fence { attempt: 2, generation: 3, generation_id: "00000000000000ff".into() };
        let id = CheckpointId::new(42, &fence).unwrap();
        let name: FileName = "config.json".parse().unwrap();
        assert_eq!(dataset(&digest).as_ref(), format!("datasets/{digest}"));
        assert_eq!(base_file(&digest, &name).as_ref(), format!("bases/{digest}/config.json"));
        assert_eq!(base_sums(&digest).as_ref(), format!("bases/{digest}/SHA256SUMS"));
        assert_eq!(
            manifest(&job, &id).as_ref(),
            "jobs/j-1/checkpoints/0000000042-0002-0003-00000000000000ff/manifest.json"
        );
        // A checkpoint's folder is its resource name.
        assert_eq!(checkpoint(&job, &id).as_ref(), id.resource_name(&job));
    }
}
