//! The program itself: health names, metrics, SIGTERM in the middle of a job, refused flags, `generate`, `merge`.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use lorafleet_proto::v1 as pb;
use lorafleet_worker::health::{LIVENESS, READINESS};
use pb::finished::Outcome;
use support::{Fleet, fence};
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

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
    coordinator.run("jobs/test", &fence(1), &fleet.spec(100_000), &["a"], &[]).await;
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

/// Killed in the middle of a sum: the survivor says who is gone, and a new gang goes on to the same adapter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_member_is_named_and_the_job_resumes() {
    let fleet = Fleet::start().await;
    let (coordinator, spec) = (&fleet.coordinator, fleet.spec(40));
    let a = Process::start(&fleet, "a", free_port());
    let b = Process::start(&fleet, "b", free_port());
    coordinator.run("jobs/test", &fence(1), &spec, &["a", "b"], &[]).await;
    coordinator.step("a", &fence(1), 4).await;
    drop(b);
    match coordinator.outcome("a", &fence(1)).await {
        Outcome::Lost(lost) => assert_eq!(lost.suspects, [1], "{}", lost.message),
        other => panic!("{other:?}"),
    }
    let resume = coordinator.checkpoints("a");
    drop(a);
    let _c = Process::start(&fleet, "c", free_port());
    coordinator.run("jobs/test", &fence(2), &spec, &["c"], &resume).await;
    let resumed = coordinator.success("c", &fence(2)).await.result.unwrap();
    assert_eq!(coordinator.points("c", &fence(2)).keys().next(), Some(&(resume[0].step + 1)));
    coordinator.run("jobs/test", &fence(3), &spec, &["c"], &[]).await;
    let undisturbed = coordinator.success("c", &fence(3)).await.result.unwrap();
    assert_eq!(resumed.adapter_sha256, undisturbed.adapter_sha256);
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
