//! Stores to test with: memory, a folder, a real S3 protocol server on loopback, and one that fails on command.

#![allow(clippy::unwrap_used, dead_code)]

pub mod faulty;
pub mod s3;

use lorafleet_store::Store;

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
