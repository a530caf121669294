//! The program itself: health names, metrics, SIGTERM in the middle of a job, refused flags, `generate`, `merge`.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use lorafleet_proto::v1 as pb;
use lorafleet_worker::health::{LIVENESS, READINESS};
use pb::finished::Outcome;
use support::{Fleet, fence, generation};
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

const JOB: &str = "jobs/test";
const WORKER: &str = env!("CARGO_BIN_EXE_lorafleet-worker");

/// A worker process that does not outlive its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Process {
    fn start(fleet: &Fleet, name: &str, health: SocketAddr) -> Self {
        let mut child = Command::new(WORKER)
            .args(["--coordinator", &fleet.coordinator.url, "--name", name, "--threads", "1"])
            .args(["--health-listen", &health.to_string()])
            .arg("--cache-dir")
            .arg(fleet.dir.path().join(name))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        // Shown when the test fails; and a pipe that nobody reads would block the worker.
        std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(|line| eprintln!("{line}")));
        Self(child)
    }

    fn terminate(&self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }
}

/// A port that was free a moment ago.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn health(address: SocketAddr, name: &str) -> Option<ServingStatus> {
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.ok()?;
    let mut client = HealthClient::new(channel);
    let response = client.check(HealthCheckRequest { service: name.to_owned() }).await.ok()?;
    Some(response.into_inner().status())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_leaves_at_a_step_boundary_and_exits_well() {
    let fleet = Fleet::start().await;
    let (coordinator, address) = (&fleet.coordinator, free_port());
    let mut worker = Process::start(&fleet, "a", address);
    coordinator.run(JOB, &fence(1), &fleet.spec(100_000), &["a"], &[]).await;
    coordinator.step("a", &fence(1), 2).await;
    assert_eq!(health(address, LIVENESS).await, Some(ServingStatus::Serving));
    assert_eq!(health(address, READINESS).await, Some(ServingStatus::Serving));
    worker.terminate();
    let Outcome::Released(released) = coordinator.outcome("a", &fence(1)).await else {
        panic!("not released")
    };
    assert_eq!(coordinator.checkpoints("a")[0].step, released.step);
    coordinator.heartbeat("a", |heartbeat| heartbeat.draining).await;
    let exit = tokio::task::spawn_blocking(move || worker.0.wait().unwrap()).await.unwrap();
    assert_eq!(exit.code(), Some(0));
}

/// Killed in the middle of a sum: the survivor says who is gone, and goes on from memory to the same adapter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_member_is_named_and_the_other_goes_on() {
    let fleet = Fleet::start().await;
    let (coordinator, spec) = (&fleet.coordinator, fleet.spec(40));
    let _a = Process::start(&fleet, "a", free_port());
    let b = Process::start(&fleet, "b", free_port());
    coordinator.run(JOB, &fence(1), &spec, &["a", "b"], &[]).await;
    coordinator.step("a", &fence(1), 4).await;
    drop(b);
    let parted = coordinator.parted("a", &fence(1)).await;
    let gone = pb::Suspicion { index: 1, evidence: pb::Evidence::Gone.into() };
    assert_eq!(parted.suspicions, [gone], "{}", parted.message);
    assert!(!parted.polite && parted.step >= 3);
    coordinator.begin(JOB, &generation(1, 2), &[("a", 1)], &coordinator.checkpoints("a")).await;
    let survived = coordinator.success("a", &fence(1)).await.result.unwrap();
    assert!(!coordinator.events("a").contains(&"resumed".to_owned()), "no checkpoint is read");
    assert_eq!(
        coordinator.points("a", &fence(1)).keys().copied().collect::<Vec<_>>(),
        (0..=40).collect::<Vec<_>>()
    );
    coordinator.run(JOB, &fence(2), &spec, &["a"], &[]).await;
    let undisturbed = coordinator.success("a", &fence(2)).await.result.unwrap();
    assert_eq!(survived.adapter_sha256, undisturbed.adapter_sha256);
}

/// The coordinator is away, and then the one member dies whose reports it would have seen: the other one kept them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_member_could_not_report_another_one_does() {
    let fleet = Fleet::start().await;
    let (coordinator, mut spec) = (&fleet.coordinator, fleet.spec(160));
    spec.eval = Some(pb::EvalSpec { every: 20, prompts: Vec::new(), ..spec.eval.unwrap() });
    spec.checkpoint.as_mut().unwrap().every = 0;
    let a = Process::start(&fleet, "a", free_port());
    let _b = Process::start(&fleet, "b", free_port());
    coordinator.run(JOB, &fence(1), &spec, &["a", "b"], &[]).await;
    coordinator.step("a", &fence(1), 4).await;
    coordinator.go_away().await;
    // Some steps are made that nobody hears of; how many does not matter.
    tokio::time::sleep(Duration::from_millis(500)).await;
    drop(a);
    coordinator.come_back();
    let parted = coordinator.parted("b", &fence(1)).await;
    let heard: BTreeMap<u64, pb::MetricPoint> = coordinator.points("a", &fence(1));
    coordinator.begin(JOB, &generation(1, 2), &[("b", 2)], &[]).await;
    coordinator.success("b", &fence(1)).await;
    let told = coordinator.points("b", &fence(1));
    let all: BTreeSet<u64> = heard.keys().chain(told.keys()).copied().collect();
    assert_eq!(all, (0..=160).collect::<BTreeSet<_>>(), "parted after step {}", parted.step);
    for (step, point) in &heard {
        let same =
            told.get(step).is_none_or(|told| (told.loss, told.grad_norm) == (point.loss, point.grad_norm));
        assert!(same, "two values for step {step}");
    }
    let keys = [coordinator.keys("a"), coordinator.keys("b")].concat();
    for step in (20..=160).step_by(20) {
        let key = format!("evaluated/{step}");
        assert!(keys.contains(&key), "{key} is lost");
    }
}

fn run(args: &[&str]) -> Output {
    Command::new(WORKER).args(args).output().unwrap()
}

#[test]
fn generate_answers_the_same_each_time() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/base");
    let base = base.to_str().unwrap();
    let prompt = "Describe the Debian package chess";
    let args = ["generate", "--base", base, "--prompt", prompt, "--max-new-tokens", "8", "--json"];
    let (first, second) = (run(&args), run(&[&args[..], &["--threads", "1"]].concat()));
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&first.stdout).unwrap();
    assert_eq!(answer["prompt"], prompt);
    assert!(!answer["answer"].as_str().unwrap().is_empty());
    assert_eq!(first.stdout, second.stdout);

    let missing = run(&["generate", "--base", "/no/such/base", "--prompt", prompt]);
    assert!(!missing.status.success());
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/no/such/base"));
}

#[test]
fn merge_writes_a_folder_once() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lora/tests/parity/llama-qv");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("merged");
    let folder = |path: &Path| path.to_str().unwrap().to_owned();
    let (base, adapter) = (folder(&case.join("base")), folder(&case.join("trained")));
    let args =
        ["merge", "--base", &base, "--adapter", &adapter, "--out", out.to_str().unwrap(), "--dtype", "f16"];
    let first = run(&args);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    assert!(String::from_utf8_lossy(&first.stdout).contains("4 tensors merged"), "q and v of two layers");
    assert!(out.join("model.safetensors").is_file() && out.join("config.json").is_file());
    let second = run(&args);
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("exists already"));
}

#[test]
fn a_gpu_that_is_not_built_in_is_refused() {
    let output = run(&["--device", "cuda"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no CUDA"));
}

#[tokio::test]
async fn liveness_comes_before_the_coordinator() {
    let address = free_port();
    let nobody = format!("http://{}", free_port());
    let dir = tempfile::tempdir().unwrap();
    let child = Command::new(WORKER)
        .args(["--coordinator", &nobody, "--health-listen", &address.to_string()])
        .arg("--cache-dir")
        .arg(dir.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut worker = Process(child);
    while health(address, LIVENESS).await != Some(ServingStatus::Serving) {
        assert_eq!(worker.0.try_wait().unwrap(), None, "the worker ended");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(health(address, READINESS).await, Some(ServingStatus::NotServing));
    worker.terminate();
    let exit = tokio::task::spawn_blocking(move || worker.0.wait().unwrap()).await.unwrap();
    assert_eq!(exit.code(), Some(0));
}
