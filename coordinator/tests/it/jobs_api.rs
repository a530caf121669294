//! The Jobs service as a client meets it: idempotent submission, field errors, pages, reflection, health.

use lorafleet_proto::v1 as pb;
use tonic::Code;
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::bed::{Bed, soon};

fn request(spec: pb::JobSpec, request_id: &str) -> pb::CreateJobRequest {
    pb::CreateJobRequest { spec: Some(spec), request_id: request_id.into(), validate_only: false }
}

#[tokio::test]
async fn a_request_id_makes_one_job_however_often_and_wherever_it_is_sent() {
    let bed = Bed::new().await;
    let (one, two) = (bed.coordinator().await, bed.coordinator().await);
    let (a, b) = (one.jobs().await, two.jobs().await);
    let id = Uuid::new_v4().to_string();
    let calls = (0..8).map(|i| {
        let mut client = if i % 2 == 0 { a.clone() } else { b.clone() };
        let request = request(bed.spec(1, 1), &id);
        async move { client.create_job(request).await.expect("created").into_inner().name }
    });
    let names = futures::future::join_all(calls).await;
    assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
    assert_eq!(bed.count("select count(*) from jobs").await, 1);
    assert_eq!(bed.count("select count(*) from job_events").await, 1);

    // Also when what it names is gone from the store by then.
    bed.forget_data().await;
    let again = b.clone().create_job(request(bed.spec(1, 1), &id)).await.expect("the same");
    assert_eq!(again.into_inner().name, names[0]);

    let status = a.clone().create_job(request(bed.spec(1, 2), &id)).await.expect_err("another spec");
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().contains(&names[0]), "{}", status.message());
    let status = a.clone().create_job(request(bed.spec(1, 1), "seven")).await.expect_err("no UUID");
    assert_eq!(violations(&status), ["request_id"]);
}

#[tokio::test]
async fn every_wrong_field_is_told_at_once_by_its_path() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut jobs = coordinator.jobs().await;
    let mut spec = bed.spec(1, 1);
    spec.adapter = Some(pb::AdapterSpec { rank: 4, dropout: 2.0, ..Default::default() });
    spec.workers = Some(pb::WorkersSpec { min: 3, max: 2 });
    let status = jobs.create_job(request(spec, "")).await.expect_err("wrong");
    assert_eq!(status.code(), Code::InvalidArgument);
    let fields = violations(&status);
    assert!(fields.iter().any(|f| f == "spec.adapter.dropout"), "{fields:?}");
    assert!(fields.iter().any(|f| f.starts_with("spec.workers")), "{fields:?}");

    // What only the base can tell.
    let targets = vec!["no_such_layer".to_owned()];
    let adapter = pb::AdapterSpec { rank: 4, targets, ..Default::default() };
    let spec = pb::JobSpec { adapter: Some(adapter), ..bed.spec(1, 1) };
    let status = jobs.create_job(request(spec, "")).await.expect_err("matches nothing");
    assert!(violations(&status).iter().any(|f| f.starts_with("spec.adapter.targets")), "{status:?}");
    assert!(status.message().contains("q_proj"), "says which exist: {}", status.message());

    let missing = pb::BaseRef { source: "x".into(), sha256: "0".repeat(64) };
    let spec = pb::JobSpec { base: Some(missing), ..bed.spec(1, 1) };
    let status = jobs.create_job(request(spec, "")).await.expect_err("never uploaded");
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("spec.base"), "{}", status.message());
    assert_eq!(bed.count("select count(*) from jobs").await, 0);
}

#[tokio::test]
async fn validate_only_stores_nothing_and_shows_the_defaults() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let request = pb::CreateJobRequest { validate_only: true, ..request(bed.spec(1, 2), "") };
    let job = coordinator.jobs().await.create_job(request).await.expect("valid").into_inner();
    assert!(job.name.is_empty());
    assert!(job.spec.expect("a spec").train.expect("train").micro_batches > 0, "defaults are filled in");
    assert_eq!(bed.count("select count(*) from jobs").await, 0);
}

#[tokio::test]
async fn pages_show_every_job_once_newest_first() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut submitted = Vec::new();
    for _ in 0..5 {
        submitted.push(coordinator.submit(bed.spec(1, 1)).await);
    }
    submitted.reverse();
    let mut jobs = coordinator.jobs().await;
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListJobsRequest { page_size: 2, page_token: token.clone(), ..Default::default() };
        let page = jobs.list_jobs(request).await.expect("a page").into_inner();
        assert!(page.jobs.len() <= 2);
        seen.extend(page.jobs.into_iter().map(|job| job.name));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
        let other = pb::ListJobsRequest { page_token: token.clone(), states: vec![1], ..Default::default() };
        let status = jobs.list_jobs(other).await.expect_err("a token of another list");
        assert_eq!(violations(&status), ["page_token"]);
    }
    assert_eq!(seen, submitted);
    let states = vec![pb::JobState::Running.into()];
    let running = jobs.list_jobs(pb::ListJobsRequest { states, ..Default::default() }).await.expect("a page");
    assert!(running.into_inner().jobs.is_empty());
}

#[tokio::test]
async fn health_and_reflection_answer() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let channel = coordinator.channel().await;
    let health = HealthClient::new(channel.clone());
    for service in ["", "liveness", "readiness", "lorafleet.v1.Jobs"] {
        let ask = || async {
            let request = HealthCheckRequest { service: service.into() };
            let response = health.clone().check(request).await.ok()?.into_inner();
            (response.status == 1).then_some(())
        };
        soon(service, ask).await;
    }
    let mut reflection = ServerReflectionClient::new(channel);
    let list = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let stream = tokio_stream::iter([list]);
    let mut answers = reflection.server_reflection_info(stream).await.expect("a stream").into_inner();
    let answer = answers.message().await.expect("an answer").expect("one").message_response;
    let Some(MessageResponse::ListServicesResponse(services)) = answer else { panic!("{answer:?}") };
    let names: Vec<String> = services.service.into_iter().map(|service| service.name).collect();
    assert!(names.iter().any(|name| name == "lorafleet.v1.Jobs"), "{names:?}");
    assert!(names.iter().any(|name| name == "grpc.health.v1.Health"), "{names:?}");
}

fn violations(status: &tonic::Status) -> Vec<String> {
    let details = status.get_error_details();
    details.bad_request().map_or(vec![], |bad| bad.field_violations.iter().map(|v| v.field.clone()).collect())
}
