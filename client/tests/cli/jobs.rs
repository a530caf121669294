//! list, get, cancel, logs, checkpoints, workers.

use lorafleet_proto::v1 as pb;
use serde_json::Value;

use crate::{
    coordinator::{Coordinator, State},
    lorafleet,
};

fn job(id: &str, state: pb::JobState) -> pb::Job {
    pb::Job {
        name: format!("jobs/{id}"),
        spec: Some(pb::JobSpec { display_name: format!("name-{id}"), ..Default::default() }),
        state: state.into(),
        step: 7,
        total_steps: 42,
        ..Default::default()
    }
}

fn three_jobs() -> State {
    let jobs =
        vec![job("c", pb::JobState::Queued), job("b", pb::JobState::Running), job("a", pb::JobState::Failed)];
    State { jobs, ..Default::default() }
}

#[tokio::test]
async fn jobs_are_listed_over_all_pages() {
    let coordinator = Coordinator::start(three_jobs()).await;
    let ran = lorafleet(&coordinator, &["list"]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert_eq!(lines[0], "JOB  NAME    STATE    STEP  LOSS  WORKERS  AGE");
    assert_eq!(lines[1], "c    name-c  queued   7/42");
    assert_eq!(lines.len(), 4, "{}", ran.stdout);
}

#[tokio::test]
async fn lists_are_canonical_json() {
    let coordinator = Coordinator::start(three_jobs()).await;
    let ran = lorafleet(&coordinator, &["list", "--json", "--state", "running,failed"]).await;
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["jobs"].as_array().unwrap().len(), 2);
    assert_eq!(json["jobs"][0]["state"], "JOB_STATE_RUNNING");
    assert_eq!(json["jobs"][0]["step"], "7", "64-bit numbers are strings");
    assert_eq!(json["jobs"][0]["spec"]["displayName"], "name-b");
}

#[tokio::test]
async fn a_limit_holds() {
    let coordinator = Coordinator::start(three_jobs()).await;
    let ran = lorafleet(&coordinator, &["list", "--limit", "1"]).await;
    assert_eq!(ran.stdout.lines().count(), 2);
}

#[tokio::test]
async fn a_job_is_known_by_id_and_by_name() {
    let coordinator = Coordinator::start(three_jobs()).await;
    for name in ["b", "jobs/b"] {
        let ran = lorafleet(&coordinator, &["get", name]).await;
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(ran.stdout.contains("state           running"), "{}", ran.stdout);
        assert!(ran.stdout.contains("step            7 of 42"), "{}", ran.stdout);
    }
}

#[tokio::test]
async fn cancelling_what_has_ended_is_refused() {
    let coordinator = Coordinator::start(three_jobs()).await;
    let ran = lorafleet(&coordinator, &["cancel", "b"]).await;
    assert_eq!((ran.code, ran.stdout.trim()), (0, "jobs/b is cancelled"));
    let ran = lorafleet(&coordinator, &["cancel", "a"]).await;
    assert_eq!((ran.code, ran.stderr.trim()), (5, "error: jobs/a has ended"));
}

#[tokio::test]
async fn logs_are_events() {
    let mut state = three_jobs();
    let time = Some(pbjson_types::Timestamp { seconds: 3723, nanos: 0 });
    state.events = vec![pb::JobEvent {
        number: 1,
        kind: "created".into(),
        message: "stored".into(),
        time,
        ..Default::default()
    }];
    let coordinator = Coordinator::start(state).await;
    let ran = lorafleet(&coordinator, &["logs", "b"]).await;
    assert_eq!(ran.stdout, "01:02:03  created      stored\n");
    let ran = lorafleet(&coordinator, &["logs", "b", "--json"]).await;
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["time"], "1970-01-01T01:02:03+00:00");
}

#[tokio::test]
async fn workers_and_checkpoints_are_tables() {
    let mut state = three_jobs();
    state.workers = vec![pb::Worker {
        name: "workers/worker-0".into(),
        state: pb::WorkerState::Ready.into(),
        resources: Some(pb::WorkerResources { device: "cpu".into(), threads: 1, ..Default::default() }),
        jobs: vec!["jobs/b".into()],
        ..Default::default()
    }];
    state.workers.push(pb::Worker { name: "workers/worker-9".into(), ..state.workers[0].clone() });
    state.workers[1].set_state(pb::WorkerState::Gone);
    state.checkpoints = vec![pb::Checkpoint {
        name: "jobs/b/checkpoints/0000000007-0001-0001-ab".into(),
        step: 7,
        r#final: true,
        ..Default::default()
    }];
    let coordinator = Coordinator::start(state).await;
    let ran = lorafleet(&coordinator, &["workers"]).await;
    assert!(
        ran.stdout.lines().nth(1).unwrap().starts_with("worker-0  ready  cpu           1"),
        "{}",
        ran.stdout
    );
    assert!(!ran.stdout.contains("worker-9") && ran.stderr.contains("1 more is gone"), "{}", ran.stderr);
    let ran = lorafleet(&coordinator, &["workers", "--all"]).await;
    assert!(ran.stdout.contains("worker-9  gone"), "{}", ran.stdout);
    let ran = lorafleet(&coordinator, &["checkpoints", "b"]).await;
    assert!(ran.stdout.contains("0000000007-0001-0001-ab     7"), "{}", ran.stdout);
    assert!(ran.stdout.contains("final"), "{}", ran.stdout);
}
