//! What goes wrong is told, and the exit code says what it was.

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::{
    coordinator::{Coordinator, State},
    lorafleet, lorafleet_at,
    submit::Job,
};

#[tokio::test]
async fn an_absent_coordinator_is_told_with_what_to_do() {
    // A listener that is closed again: nobody answers there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let ran = lorafleet_at(&format!("http://127.0.0.1:{port}"), &["list"], None).await;
    assert_eq!(ran.code, 4);
    assert!(ran.stderr.contains("cannot reach the coordinator at http://127.0.0.1:"), "{}", ran.stderr);
    assert!(ran.stderr.contains("Connection refused"), "{}", ran.stderr);
    assert!(ran.stderr.contains("lorafleet up"), "{}", ran.stderr);
}

#[tokio::test]
async fn an_address_that_is_none_is_a_usage_error() {
    for url in ["localhost:7400", "https://x:1", "not a url"] {
        let ran = lorafleet_at(url, &["list"], None).await;
        assert_eq!(ran.code, 2, "{url}: {}", ran.stderr);
        assert!(ran.stderr.contains("--coordinator: "), "{}", ran.stderr);
    }
}

#[tokio::test]
async fn an_unknown_job_is_not_found() {
    let coordinator = Coordinator::start(State::default()).await;
    for args in [&["get", "x"][..], &["watch", "x"], &["cancel", "x"]] {
        let ran = lorafleet(&coordinator, args).await;
        assert_eq!((ran.code, ran.stderr.trim()), (3, "error: there is no job jobs/x"));
    }
}

#[tokio::test]
async fn every_field_that_the_coordinator_refuses_is_told() {
    let details = ErrorDetails::with_bad_request(vec![
        FieldViolation::new("spec.adapter.rank", "is larger than 8"),
        FieldViolation::new("spec.train.lr", "must be above 0"),
    ]);
    let refusal = Status::with_error_details(Code::InvalidArgument, "the job has 2 mistakes", details);
    let coordinator =
        Coordinator::start(State { create_errors: [refusal].into(), ..Default::default() }).await;
    let job = Job::new();
    let ran = lorafleet(&coordinator, &["submit", job.path()]).await;
    assert_eq!(ran.code, 2);
    let told =
        "error: the job has 2 mistakes\n  adapter.rank: is larger than 8\n  train.lr: must be above 0\n";
    assert!(ran.stderr.ends_with(told), "{}", ran.stderr);
}

#[tokio::test]
async fn every_mistake_of_a_job_file_is_told_before_anything_is_sent() {
    let coordinator = Coordinator::start(State::default()).await;
    let job = Job::with("adaptor: {rank: 4}\ntrain: {steps: 2, lr: -1}\n");
    for command in ["submit", "validate"] {
        let ran = lorafleet(&coordinator, &[command, job.path()]).await;
        assert_eq!(ran.code, 2);
        assert!(ran.stderr.contains("has 2 mistakes:"), "{}", ran.stderr);
        assert!(ran.stderr.contains("adaptor: ") && ran.stderr.contains("`adapter`"), "{}", ran.stderr);
        assert!(ran.stderr.contains("train.lr: "), "{}", ran.stderr);
    }
    assert!(coordinator.state().uploads.is_empty());
}

#[tokio::test]
async fn a_missing_job_file_is_named() {
    let coordinator = Coordinator::start(State::default()).await;
    let ran = lorafleet(&coordinator, &["submit", "/nowhere/job.yaml"]).await;
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.starts_with("error: /nowhere/job.yaml: "), "{}", ran.stderr);
}
