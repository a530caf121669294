//! Stores to test with: memory, a folder, a real S3 protocol server on loopback, and one that fails on command.

#![allow(clippy::unwrap_used, dead_code)]

pub mod faulty;
pub mod s3;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use lorafleet_store::{CheckpointId, Digest, Draft, Fence, FileName, JobId, Retry, Store};

/// A store with what keeps it alive.
pub struct Backend {
    pub name: &'static str,
    pub store: Store,
    pub _keep: Box<dyn std::any::Any + Send + Sync>,
}

/// One fresh store of each kind.
pub async fn backends() -> Vec<Backend> {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}/some/folder", folder.path().display());
    let s3 = s3::Server::start().await;
    vec![
        Backend { name: "memory", store: Store::open("memory://").unwrap(), _keep: Box::new(()) },
        Backend { name: "file", store: Store::open(&url).unwrap(), _keep: Box::new(folder) },
        Backend { name: "s3", store: s3.store("some/prefix"), _keep: Box::new(s3) },
    ]
}

/// A job to write checkpoints of.
pub fn job() -> JobId {
    "0192f0c1-job".parse().unwrap()
}

/// A checkpoint of it.
pub fn draft(step: u64, attempt: u32, generation_id: &str) -> Draft {
    Draft {
        job: job(),
        step,
        fence: Fence { attempt, generation: 1, generation_id: generation_id.into() },
        parent: None,
        is_final: false,
        spec_sha256: Digest::of(b"spec"),
        kind: "cpu".into(),
        scale_bits: 36,
    }
}

pub const GENERATION: &str = "0123456789abcdef";

/// Small files.
pub fn files(salt: &str) -> BTreeMap<FileName, Bytes> {
    ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors"]
        .map(|name| (name.parse().unwrap(), Bytes::from(format!("{name} {salt}"))))
        .into()
}

/// Its place.
pub fn id(draft: &Draft) -> CheckpointId {
    CheckpointId::new(draft.step, &draft.fence).unwrap()
}

/// Few and short pauses.
pub fn quick(attempts: u32) -> Retry {
    let pause = Duration::from_millis(1);
    Retry { attempts, first_pause: pause, longest_pause: pause, ..Retry::default() }
}
