//! Any gRPC client works: reflection, health, field paths in errors, request ids, pages.

use anyhow::{Context as _, Result};
use lorafleet_proto::v1 as pb;
use lorafleet_tests::{Fleet, JobFile, Options};
use tokio_stream::StreamExt as _;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

#[tokio::test(flavor = "multi_thread")]
async fn reflection_and_health_are_on() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let mut health = HealthClient::new(fleet.channel().await?);
    for service in ["", "lorafleet.v1.Jobs"] {
        let status = health.check(HealthCheckRequest { service: service.into() }).await?.into_inner().status;
        assert_eq!(status, 1, "{service:?} is not SERVING");
    }
    let mut reflection = ServerReflectionClient::new(fleet.channel().await?);
    let ask = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut answers = reflection.server_reflection_info(tokio_stream::iter([ask])).await?.into_inner();
    let answer = answers.next().await.context("no answer")??.message_response.context("empty answer")?;
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("unexpected {answer:?}") };
    let names: Vec<String> = list.service.into_iter().map(|s| s.name).collect();
    for expected in
        ["lorafleet.v1.Jobs", "lorafleet.v1.Artifacts", "lorafleet.v1.Fleet", "grpc.health.v1.Health"]
    {
        assert!(names.iter().any(|n| n == expected), "{expected} is not among {names:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_id_is_the_same_job() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let path = JobFile::default().write(&fleet.home("client")?)?;
    let id = "0b7b3d5e-7c2f-4e3a-9a67-3f1d3b9f0a11";
    let path = path.display().to_string();
    let submit = || fleet.cli_json(&["submit", &path, "--request-id", id, "--json"]);
    assert_eq!(submit()?["name"], submit()?["name"]);
    let list = fleet.jobs().await?.list_jobs(pb::ListJobsRequest::default()).await?.into_inner();
    assert_eq!(list.jobs.len(), 1);

    JobFile { seed: 99, ..JobFile::default() }.write(&fleet.home("client")?)?;
    let output = fleet.cli(&["submit", &path, "--request-id", id])?;
    assert!(!output.status.success(), "another spec under the same request id was taken");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mistake_of_a_spec_comes_back_with_its_field_path() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let spec = pb::JobSpec {
        display_name: "x".into(),
        task: pb::Task::CausalLm as i32,
        adapter: Some(pb::AdapterSpec {
            rank: 0,
            alpha: -1.0,
            targets: vec!["all-linear".into()],
            ..Default::default()
        }),
        workers: Some(pb::WorkersSpec { min: 3, max: 2 }),
        ..Default::default()
    };
    let request = pb::CreateJobRequest { spec: Some(spec), ..Default::default() };
    let status = fleet.jobs().await?.create_job(request).await.expect_err("a bad spec was taken");
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let details = String::from_utf8_lossy(status.details()).into_owned();
    for path in ["spec.base", "spec.data.train", "spec.adapter.alpha", "spec.workers.min"] {
        assert!(details.contains(path), "{path} is not in {details:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_replays_the_history_and_ends_with_the_job() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.start_worker("a", 1)?;
    let name = fleet.submit(&JobFile { steps: 3, eval_every: 2, ..JobFile::default() })?;
    let request = pb::WatchJobRequest { name: name.clone(), ..Default::default() };
    let mut stream = fleet.jobs().await?.watch_job(request).await?.into_inner();
    let (mut events, mut steps, mut last) = (Vec::new(), Vec::new(), None);
    while let Some(message) = stream.next().await {
        match message?.update.context("an empty update")? {
            pb::watch_job_response::Update::Job(job) => last = Some(job),
            pb::watch_job_response::Update::Event(event) => events.push(event.number),
            pb::watch_job_response::Update::Point(point) => steps.push(point.step),
        }
    }
    assert_eq!(last.context("no job")?.state(), pb::JobState::Succeeded);
    assert_eq!(events, (1..=events.len() as u64).collect::<Vec<_>>(), "a gap or a double");
    steps.retain(|s| *s > 0);
    assert_eq!(steps, [1, 2, 3]);
    Ok(())
}
