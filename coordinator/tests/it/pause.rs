//! Pausing and resuming: every step is kept, nobody is blamed, and what has ended cannot be paused.

use lorafleet_proto::v1 as pb;
use pb::{AttemptState, JobState, coordinator_message::Message as Down};
use tonic::Code;

use crate::{
    bed::{Bed, Coordinator},
    pair::gang_of_two,
    worker::{Worker, released},
};

/// Leases that no test outlives.
const PATIENT: [&str; 2] = ["--lease", "1h"];

async fn pause(coordinator: &Coordinator, name: &str) -> Result<pb::Job, tonic::Status> {
    let request = pb::PauseJobRequest { name: name.into() };
    coordinator.jobs().await.pause_job(request).await.map(tonic::Response::into_inner)
}

async fn resume(coordinator: &Coordinator, name: &str) -> Result<pb::Job, tonic::Status> {
    let request = pb::ResumeJobRequest { name: name.into() };
    coordinator.jobs().await.resume_job(request).await.map(tonic::Response::into_inner)
}

async fn explain(coordinator: &Coordinator, name: &str) -> String {
    let request = pb::ExplainJobRequest { name: name.into() };
    coordinator.jobs().await.explain_job(request).await.expect("explained").into_inner().explanation
}

async fn asked_to_leave(worker: &mut Worker) {
    worker.expect("Leave", |m| matches!(m, Down::Leave(_)).then_some(())).await;
}

#[tokio::test]
async fn a_running_job_pauses_when_its_workers_have_left_and_goes_on_where_it_was() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&PATIENT).await;
    let (job, (mut a, place_a), (mut b, place_b)) = gang_of_two(&bed, &coordinator, 2).await;
    a.progress(&place_a, 1..=5).await;
    assert_eq!(pause(&coordinator, &job).await.expect("pausing").state(), JobState::Running);
    assert!(explain(&coordinator, &job).await.starts_with("is running, but is about to pause"));
    asked_to_leave(&mut a).await;
    asked_to_leave(&mut b).await;
    a.checkpoint(&place_a, 5).await;
    a.finish(&place_a, released(5)).await;
    b.finish(&place_b, released(5)).await;
    let paused = coordinator.until_state(&job, JobState::Paused).await;
    assert_eq!((paused.step, paused.infrastructure_failures, paused.preemptions), (5, 0, 0));
    assert_eq!(coordinator.attempts(&job).await[0].state(), AttemptState::Released);
    // Once more changes nothing.
    assert_eq!(pause(&coordinator, &job).await.expect("paused").state(), JobState::Paused);
    assert!(explain(&coordinator, &job).await.starts_with("is paused at step 5"));
    assert_eq!(resume(&coordinator, &job).await.expect("resumed").state(), JobState::Queued);
    let (place, begin) = tokio::join!(a.start(), b.start()).0;
    assert_eq!((place.fence().attempt, begin.resume[0].step), (2, 5));
    let kinds: Vec<String> = coordinator.events(&job).await.into_iter().map(|event| event.kind).collect();
    for kind in ["pausing", "paused", "resumed"] {
        assert_eq!(kinds.iter().filter(|other| *other == kind).count(), 1, "{kinds:?}");
    }
}

#[tokio::test]
async fn a_queued_job_pauses_at_once_and_an_ended_one_never() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&PATIENT).await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    assert_eq!(resume(&coordinator, &job).await.expect_err("queued").code(), Code::FailedPrecondition);
    assert_eq!(pause(&coordinator, &job).await.expect("paused").state(), JobState::Paused);
    let mut a = Worker::join(&coordinator, "a").await;
    let other = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = a.start().await;
    assert_eq!(place.assign.job, other, "a paused job holds no worker");
    a.finish(&place, place.succeeded(100)).await;
    coordinator.until_state(&other, JobState::Succeeded).await;
    let refused = pause(&coordinator, &other).await.expect_err("it has ended");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.message(), "the job has succeeded; it cannot be paused");
    resume(&coordinator, &job).await.expect("resumed");
    assert_eq!(a.assigned().await.assign.job, job);
}
