//! Bases by hub id: what is fetched, once, under which commit, and what is told when it cannot be.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use lorafleet::{Hub, HubConfig, HubError, Progress};
use lorafleet_spec::base::HubId;
use tempfile::TempDir;

use crate::{
    coordinator::{Coordinator, State},
    lorafleet_with,
    mirror::{COMMIT, Mirror},
    submit::Job,
};

/// A repository with a base, and with what no base needs.
fn repository() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/base");
    for name in lorafleet_spec::base::base_files(&base).unwrap() {
        std::fs::copy(base.join(&name), folder.path().join(&name)).unwrap();
    }
    for other in ["README.md", "pytorch_model.bin", "vocab.json", "flax_model.msgpack"] {
        std::fs::write(folder.path().join(other), "no part of it").unwrap();
    }
    folder
}

fn hub(mirror: &Mirror, cache: &Path) -> Hub {
    hub_with(mirror, cache, None, false)
}

fn hub_with(mirror: &Mirror, cache: &Path, token: Option<&str>, offline: bool) -> Hub {
    let token = token.map(str::to_owned);
    Hub::new(HubConfig { endpoint: mirror.url.clone(), token, cache: cache.to_owned(), offline }).unwrap()
}

fn quiet(_: &str, _: u64) -> Progress {
    Arc::new(|_| {})
}

fn id(text: &str) -> HubId {
    HubId::parse(text).unwrap()
}

async fn fails(hub: &Hub, text: &str) -> (HubError, String) {
    let error = hub.fetch(&id(text), &quiet).await.unwrap_err();
    let text = error.to_string();
    (error, text)
}

#[tokio::test]
async fn only_the_base_is_fetched_and_only_once() {
    let (folder, cache) = (repository(), tempfile::tempdir().unwrap());
    let mirror = Mirror::start(folder.path().to_owned(), "org/model", None).await;
    let hub = hub(&mirror, cache.path());
    assert!(hub.cached(&id("org/model")).is_none());
    let base = hub.fetch(&id("org/model"), &quiet).await.unwrap();
    assert_eq!(base.id.to_string(), format!("org/model@{COMMIT}"));
    let snapshot: PathBuf = ["models--org--model", "snapshots", COMMIT].iter().collect();
    assert_eq!(base.dir, cache.path().join(snapshot), "where Hugging Face's tools look for it");
    let wanted = lorafleet_spec::base::base_files(&folder.path().join(".")).unwrap();
    assert_eq!(lorafleet_spec::base::base_files(&base.dir).unwrap(), wanted);
    let requests = mirror.requests();
    assert_eq!(requests.len(), 1 + wanted.len(), "{requests:?}");
    assert!(requests.last().unwrap().ends_with("/model.safetensors"), "small files come first: {requests:?}");
    assert_eq!(
        std::fs::read(base.dir.join("model.safetensors")).unwrap(),
        std::fs::read(folder.path().join("model.safetensors")).unwrap()
    );
    // A branch is asked for its commit again, a commit is not.
    assert_eq!(hub.fetch(&id("org/model"), &quiet).await.unwrap(), base);
    assert_eq!(mirror.requests().len(), 1);
    assert_eq!(hub.fetch(&base.id, &quiet).await.unwrap(), base);
    assert_eq!(hub.cached(&id("org/model")), Some(base.clone()));
    assert_eq!(hub.fetch(&id("org/model@refs/pr/1"), &quiet).await.unwrap(), base);
    assert_eq!(mirror.requests().len(), 1);
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let (folder, cache) = (repository(), tempfile::tempdir().unwrap());
    let mirror = Mirror::start(folder.path().to_owned(), "org/model", None).await;
    mirror.break_off("model.safetensors");
    let base = hub(&mirror, cache.path()).fetch(&id("org/model"), &quiet).await.unwrap();
    let bytes = std::fs::read(base.dir.join("model.safetensors")).unwrap();
    assert_eq!(bytes, std::fs::read(folder.path().join("model.safetensors")).unwrap());
    let half = bytes.len() / 2;
    assert!(mirror.requests().last().unwrap().ends_with(&format!("model.safetensors from {half}")));
}

#[tokio::test]
async fn every_refusal_says_what_to_do() {
    let (folder, cache) = (repository(), tempfile::tempdir().unwrap());
    let mirror = Mirror::start(folder.path().to_owned(), "org/gated", Some("hf_right")).await;
    let (error, text) = fails(&hub(&mirror, cache.path()), "org/gated").await;
    assert!(matches!(error, HubError::Gated { status: 401, .. }), "{text}");
    assert!(
        text.contains(&format!("accept its terms at {}/org/gated, and set HF_TOKEN", mirror.url)),
        "{text}"
    );
    let right = hub_with(&mirror, cache.path(), Some("hf_right"), false);
    let (_, text) = fails(&right, "org/gated@v9").await;
    assert!(text.contains("org/gated has no revision \"v9\""), "{text}");
    let (error, text) = fails(&right, "org/other").await;
    assert!(
        matches!(error, HubError::NoModel { .. }) && text.contains("neither a folder org/other nor a model"),
        "{text}"
    );
    mirror.refuse(Some((401, "RepoNotFound")));
    let (_, text) = fails(&hub(&mirror, cache.path()), "org/other").await;
    assert!(text.contains("check the name") && text.contains("set HF_TOKEN"), "{text}");
    mirror.refuse(Some((403, "")));
    let (_, text) = fails(&right, "org/gated").await;
    assert!(text.contains("the token in HF_TOKEN (or of `hf auth login`) is not valid there"), "{text}");
    mirror.refuse(None);
    assert!(right.fetch(&id("org/gated"), &quiet).await.is_ok());
}

#[tokio::test]
async fn offline_only_the_cache_is_used() {
    let (folder, cache) = (repository(), tempfile::tempdir().unwrap());
    let mirror = Mirror::start(folder.path().to_owned(), "org/model", None).await;
    let offline = hub_with(&mirror, cache.path(), None, true);
    let (_, text) = fails(&offline, "org/model").await;
    assert!(text.contains("HF_HUB_OFFLINE forbids to fetch it"), "{text}");
    let base = hub(&mirror, cache.path()).fetch(&id("org/model"), &quiet).await.unwrap();
    mirror.requests();
    assert_eq!(offline.fetch(&id("org/model"), &quiet).await.unwrap(), base);
    assert_eq!(mirror.requests(), Vec::<String>::new());
    // A snapshot that lacks a file is none.
    std::fs::remove_file(base.dir.join("model.safetensors")).unwrap();
    assert!(offline.cached(&id("org/model")).is_none());
}

#[tokio::test]
async fn a_repository_without_safetensors_is_told() {
    let (folder, cache) = (repository(), tempfile::tempdir().unwrap());
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let mirror = Mirror::start(folder.path().to_owned(), "org/old", None).await;
    let (_, text) = fails(&hub(&mirror, cache.path()), "org/old").await;
    assert!(
        text.starts_with("org/old: model.safetensors is missing; pytorch_model.bin is pickled"),
        "{text}"
    );
}

#[tokio::test]
async fn a_job_on_a_hub_id_is_stored_with_its_commit() {
    let (folder, home) = (repository(), tempfile::tempdir().unwrap());
    let mirror = Mirror::start(folder.path().to_owned(), "org/model", None).await;
    let coordinator = Coordinator::start(State::default()).await;
    let job = Job::of_base("org/model", "train: {steps: 2, max_length: 64}\n");
    let variables = [("HF_ENDPOINT", mirror.url.as_str()), ("HF_HOME", home.path().to_str().unwrap())];
    let run = |args: Vec<&'static str>, job: String| {
        let (url, variables) = (coordinator.url.clone(), variables);
        async move {
            let args: Vec<&str> = args.into_iter().chain([job.as_str()]).collect();
            lorafleet_with(&url, &args, &variables).await
        }
    };
    let before = run(vec!["validate"], job.path().to_owned()).await;
    assert_eq!(before.code, 0, "{}", before.stderr);
    assert!(before.stderr.contains("base: org/model on the hub is not on this machine"), "{}", before.stderr);
    let ran = run(vec!["submit"], job.path().to_owned()).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let base = coordinator.state().created[0].spec.clone().unwrap().base.unwrap();
    assert_eq!(base.source, format!("org/model@{COMMIT}"));
    let uploads = coordinator.state().uploads.clone();
    assert!(uploads.contains(&format!("bases/{}/model.safetensors", base.sha256)), "{uploads:?}");
    let after = run(vec!["validate"], job.path().to_owned()).await;
    assert!(after.code == 0 && after.stdout.contains("llama"), "{}{}", after.stdout, after.stderr);
    // A mistake is told before anything is fetched.
    mirror.requests();
    let wrong = Job::of_base("org/other", "adapter: {rnak: 2}\n");
    let ran = run(vec!["submit"], wrong.path().to_owned()).await;
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert_eq!(mirror.requests(), Vec::<String>::new());
    let missing = Job::of_base("org/other", "");
    let ran = run(vec!["submit"], missing.path().to_owned()).await;
    assert_eq!(ran.code, 3, "{}", ran.stderr);
}
