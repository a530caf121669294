//! submit: what is sent, once, and under which request id.

use std::path::Path;

use lorafleet_proto::v1 as pb;
use lorafleet_spec::digest::sha256_hex;
use tempfile::TempDir;
use tonic::Status;

use crate::{
    coordinator::{Coordinator, State},
    lorafleet,
};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

/// A job file on the example's base and two lines of data, in a folder of its own.
pub struct Job {
    folder: TempDir,
    path: String,
}

impl Job {
    pub fn new() -> Self {
        Self::with("train: {steps: 2, max_length: 64}\n")
    }

    pub fn with(more: &str) -> Self {
        Self::of_base(&format!("{EXAMPLES}/base"), more)
    }

    /// The same on another base.
    pub fn of_base(base: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = std::fs::read_to_string(Path::new(EXAMPLES).join("games/train.jsonl")).unwrap();
        let lines: String = data.split_inclusive('\n').take(2).collect();
        std::fs::write(folder.path().join("train.jsonl"), lines).unwrap();
        let text = format!("name: test\nbase: {base}\ndata: {{train: train.jsonl}}\n{more}");
        let path = folder.path().join("job.yaml");
        std::fs::write(&path, text).unwrap();
        Self { path: path.to_str().unwrap().to_owned(), folder }
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    fn data_sha256(&self) -> String {
        sha256_hex(&std::fs::read(self.folder.path().join("train.jsonl")).unwrap())
    }
}

#[tokio::test]
async fn base_and_data_are_sent_once_and_named_by_digest() {
    let coordinator = Coordinator::start(State::default()).await;
    let job = Job::new();
    let ran = lorafleet(&coordinator, &["submit", job.path()]).await;
    assert_eq!((ran.code, ran.stdout.trim()), (0, "jobs/new"), "{}", ran.stderr);
    assert!(ran.stderr.contains("train    2 examples (chat from JSON lines)"), "{}", ran.stderr);
    let first = coordinator.state().uploads.clone();
    let spec = coordinator.state().created[0].spec.clone().unwrap();
    let base = spec.base.unwrap();
    assert_eq!(first.iter().filter(|place| place.ends_with("/SHA256SUMS")).count(), 1);
    assert!(first.contains(&format!("bases/{}/model.safetensors", base.sha256)), "{first:?}");
    let sums = first.iter().position(|place| place.ends_with("/SHA256SUMS"));
    let last_file = first.iter().rposition(|place| place.starts_with("bases/"));
    assert_eq!(sums, last_file, "the list makes the base whole, so it is sent last");
    let train = spec.data.unwrap().train.remove(0);
    assert_eq!((train.source.as_str(), train.sha256), ("train.jsonl", job.data_sha256()));
    assert!(first.contains(&format!("datasets/{}", job.data_sha256())), "{first:?}");

    let ran = lorafleet(&coordinator, &["submit", job.path()]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(coordinator.state().uploads, first, "the second time nothing is sent");
    assert!(ran.stderr.contains("is in the fleet already"), "{}", ran.stderr);
    let ids: Vec<_> = coordinator.state().created.iter().map(|request| request.request_id.clone()).collect();
    assert_ne!(ids[0], ids[1], "another submission is another job");
}

#[tokio::test]
async fn patterns_become_files_and_urls_are_fetched_by_the_fleet() {
    let coordinator = Coordinator::start(State::default()).await;
    let job = Job::new();
    std::fs::copy(job.folder.path().join("train.jsonl"), job.folder.path().join("also.jsonl")).unwrap();
    let text = format!(
        "base: {EXAMPLES}/base\ndata: {{train: ['*.jsonl', 's3://bucket/x/*.jsonl'], columns: {{}}}}\n"
    );
    std::fs::write(job.path(), text).unwrap();
    let ran = lorafleet(&coordinator, &["submit", job.path()]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let state = coordinator.state();
    let train = state.created[0].spec.clone().unwrap().data.unwrap().train;
    let names: Vec<_> = train.iter().map(|file| file.source.as_str()).collect();
    assert_eq!(names, ["also.jsonl", "train.jsonl", "s3://bucket/x/a.jsonl", "s3://bucket/x/b.jsonl"]);
    assert!(train.iter().all(|file| file.sha256.len() == 64), "{train:?}");
    let hint = state.imports[0].data.as_ref().unwrap();
    assert_eq!(hint.task(), pb::Task::CausalLm);
    let hints: Vec<_> = state.hints.iter().map(|hint| hint.name.as_str()).collect();
    assert_eq!(hints, ["also.jsonl"], "the other has the same bytes");
}

#[tokio::test]
async fn creation_is_retried_under_one_request_id() {
    let away = || Status::unavailable("going down");
    let coordinator =
        Coordinator::start(State { create_errors: [away(), away()].into(), ..Default::default() }).await;
    let job = Job::new();
    let ran = lorafleet(&coordinator, &["submit", job.path(), "--json"]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let ids: Vec<_> = coordinator.state().created.iter().map(|request| request.request_id.clone()).collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|id| *id == ids[0] && !id.is_empty()), "{ids:?}");
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["name"], "jobs/new");
}

#[tokio::test]
async fn a_request_id_of_the_users_choice_is_kept() {
    let coordinator = Coordinator::start(State::default()).await;
    let job = Job::new();
    let id = "0190b7a4-6f3e-7cc0-8000-000000000001";
    let ran = lorafleet(&coordinator, &["submit", job.path(), "--request-id", id]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(coordinator.state().created[0].request_id, id);
    let ran = lorafleet(&coordinator, &["submit", job.path(), "--request-id", "mine"]).await;
    assert_eq!(ran.code, 2, "only a UUID will do");
}

#[tokio::test]
async fn submit_can_follow_its_job() {
    let done = pb::Job {
        name: "jobs/new".into(),
        state: pb::JobState::Succeeded.into(),
        step: 2,
        ..Default::default()
    };
    let watch = vec![Ok(pb::watch_job_response::Update::Job(done))];
    let coordinator = Coordinator::start(State { watches: [watch].into(), ..Default::default() }).await;
    let job = Job::new();
    let ran = lorafleet(&coordinator, &["submit", job.path(), "--watch"]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("(jobs/new) succeeded after 2 steps"), "{}", ran.stdout);
}

#[tokio::test]
async fn validate_needs_no_fleet() {
    let coordinator = Coordinator::start(State::default()).await;
    let job = Job::new();
    let ran = lorafleet(&coordinator, &["validate", job.path()]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("is in order"), "{}", ran.stdout);
    let ran = lorafleet(&coordinator, &["validate", job.path(), "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["adapter"]["rank"], 16, "defaults are filled in");
}

#[tokio::test]
async fn an_adapter_to_start_from_is_sent_as_a_folder() {
    let coordinator = Coordinator::start(State::default()).await;
    let job = Job::with("adapter: {rank: 4, start: start}\ntrain: {steps: 2, max_length: 64}\n");
    let start = job.folder.path().join("start");
    std::fs::create_dir(&start).unwrap();
    std::fs::write(start.join("adapter_model.bin"), "pickled").unwrap();
    std::fs::write(start.join("adapter_config.json"), "{}").unwrap();
    let ran = lorafleet(&coordinator, &["submit", job.path()]).await;
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("has no adapter_model.safetensors; adapter_model.bin is pickled"),
        "{}",
        ran.stderr
    );
    std::fs::write(start.join("adapter_model.safetensors"), "weights").unwrap();
    let ran = lorafleet(&coordinator, &["submit", job.path()]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let adapter = coordinator.state().created[0].spec.clone().unwrap().adapter.unwrap();
    let sent = adapter.start.unwrap();
    assert_eq!(sent.source, "start");
    let uploads = coordinator.state().uploads.clone();
    let of_start: Vec<_> = uploads.iter().filter(|place| place.contains(&sent.sha256)).collect();
    let place = |name: &str| format!("bases/{}/{name}", sent.sha256);
    let wanted = ["adapter_config.json", "adapter_model.safetensors", "SHA256SUMS"].map(place);
    assert_eq!(of_start, wanted.iter().collect::<Vec<_>>(), "the list comes last");
}
