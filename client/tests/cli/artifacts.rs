//! download: whole files, checked, or none.

use std::collections::HashMap;

use lorafleet::{Cache, Client, Progress};
use lorafleet_proto::v1 as pb;
use lorafleet_spec::digest::{base_digest, sha256_hex, sums_text};

use crate::{
    coordinator::{Coordinator, State},
    lorafleet,
};

const CHECKPOINT: &str = "jobs/a/checkpoints/0000000003-0001-0001-ab";

/// A job with a final checkpoint of three files; the model takes several chunks.
fn with_checkpoint() -> State {
    let model: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
    let contents = [
        ("adapter_config.json", b"{}".to_vec()),
        ("adapter_model.safetensors", model),
        ("optimizer.safetensors", b"moments".to_vec()),
    ];
    let file = |(name, bytes): &(&str, Vec<u8>)| pb::CheckpointFile {
        name: (*name).into(),
        size_bytes: bytes.len() as u64,
        sha256: sha256_hex(bytes),
    };
    let checkpoint = pb::Checkpoint {
        name: CHECKPOINT.into(),
        step: 3,
        files: contents.iter().map(file).collect(),
        manifest_sha256: sha256_hex(b"manifest"),
        r#final: true,
        ..Default::default()
    };
    State {
        jobs: vec![pb::Job { name: "jobs/a".into(), ..Default::default() }],
        checkpoints: vec![checkpoint],
        files: contents.into_iter().map(|(name, bytes)| (format!("{CHECKPOINT}/{name}"), bytes)).collect(),
        ..Default::default()
    }
}

#[tokio::test]
async fn an_adapter_is_a_peft_folder() {
    let coordinator = Coordinator::start(with_checkpoint()).await;
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("adapter");
    let ran = lorafleet(&coordinator, &["download", "a", target.to_str().unwrap()]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(std::fs::read(target.join("adapter_config.json")).unwrap(), b"{}");
    assert_eq!(std::fs::read(target.join("adapter_model.safetensors")).unwrap().len(), 3_000_000);
    assert!(!target.join("optimizer.safetensors").exists());
    let ran = lorafleet(&coordinator, &["download", "a", target.to_str().unwrap(), "--all", "--json"]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(std::fs::read(target.join("optimizer.safetensors")).unwrap(), b"moments");
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["checkpoint"]["name"], CHECKPOINT);
}

#[tokio::test]
async fn a_broken_download_is_begun_again() {
    let coordinator = Coordinator::start(State { broken_downloads: 2, ..with_checkpoint() }).await;
    let dir = tempfile::tempdir().unwrap();
    let ran = lorafleet(&coordinator, &["download", "a", dir.path().to_str().unwrap()]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(std::fs::read(dir.path().join("adapter_model.safetensors")).unwrap().len(), 3_000_000);
}

#[tokio::test]
async fn damaged_bytes_are_no_file() {
    let mut state = with_checkpoint();
    state.files.insert(format!("{CHECKPOINT}/adapter_model.safetensors"), b"damaged".to_vec());
    let coordinator = Coordinator::start(state).await;
    let dir = tempfile::tempdir().unwrap();
    let ran = lorafleet(&coordinator, &["download", "a", dir.path().to_str().unwrap()]).await;
    assert_eq!(ran.code, 6);
    assert!(ran.stderr.contains("adapter_model.safetensors is damaged"), "{}", ran.stderr);
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["adapter_config.json"], "nothing half written is left");
}

#[tokio::test]
async fn a_checkpoint_that_is_gone_is_not_found() {
    let coordinator = Coordinator::start(with_checkpoint()).await;
    let ran = lorafleet(&coordinator, &["download", "a", "/tmp/never", "--checkpoint", "0001"]).await;
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("jobs/a/checkpoints/0001 is not in the store"), "{}", ran.stderr);
}

#[tokio::test]
async fn a_base_is_fetched_once_and_whole() {
    let contents = [("config.json", b"{}".to_vec()), ("model.safetensors", vec![7; 100])];
    let digests: Vec<_> =
        contents.iter().map(|(name, bytes)| ((*name).to_owned(), sha256_hex(bytes))).collect();
    let sha256 = base_digest(&digests);
    let mut files: HashMap<_, _> =
        contents.into_iter().map(|(name, bytes)| (format!("bases/{sha256}/{name}"), bytes)).collect();
    files.insert(format!("bases/{sha256}/SHA256SUMS"), sums_text(&digests).into_bytes());
    let coordinator = Coordinator::start(State { files, ..Default::default() }).await;
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path());
    let client = Client::connect(&coordinator.url).await.unwrap();
    let quiet = |_: &str, _: u64| -> Progress { std::sync::Arc::new(|_| {}) };
    let base = cache.base(&client, &sha256, &quiet).await.unwrap();
    assert_eq!(std::fs::read(base.join("model.safetensors")).unwrap(), vec![7; 100]);
    coordinator.state().files.clear();
    assert_eq!(
        cache.base(&client, &sha256, &quiet).await.unwrap(),
        base,
        "the second time nothing is fetched"
    );
}
