//! Cancelling: at once for the user, within a step for the members, never twice.

use lorafleet_proto::v1 as pb;
use pb::{AttemptState, JobState, StopReason};
use tonic_types::StatusExt as _;

use crate::{
    bed::Bed,
    worker::{Worker, stopped},
};

#[tokio::test]
async fn a_running_job_is_cancelled_at_once_and_its_members_stop() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut worker = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = worker.start().await;
    let mut jobs = coordinator.jobs().await;
    let request = pb::CancelJobRequest { name: job.clone() };
    let cancelled = jobs.cancel_job(request.clone()).await.expect("cancelled").into_inner();
    assert_eq!((cancelled.state(), cancelled.world_size), (JobState::Cancelled, 0));
    assert_eq!(worker.stopped().await.reason(), StopReason::Cancelled);
    // The slot is not free before the member has stopped.
    let next = coordinator.submit(bed.spec(1, 1)).await;
    let waits = coordinator.until(&next, "a reason", |job| !job.state_message.is_empty()).await;
    assert_eq!(waits.state_message, "waits for a worker to be free; it is number 1 in the queue");
    worker.finish(&place, stopped()).await;
    assert_eq!(worker.assigned().await.assign.job, next);
    assert_eq!(coordinator.attempts(&job).await[0].state(), AttemptState::Cancelled);

    let again = jobs.cancel_job(request).await.expect_err("it has ended");
    assert_eq!(again.code(), tonic::Code::FailedPrecondition);
    let details = again.get_error_details();
    assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("JOB_HAS_ENDED"));
}

#[tokio::test]
async fn a_member_that_stops_without_a_word_frees_its_slot() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut worker = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = worker.start().await;
    coordinator.jobs().await.cancel_job(pb::CancelJobRequest { name: job }).await.expect("cancelled");
    worker.stopped().await;
    worker.forget(&place);
    let next = coordinator.submit(bed.spec(1, 1)).await;
    assert_eq!(worker.assigned().await.assign.job, next);
}

#[tokio::test]
async fn a_queued_job_is_cancelled_and_never_starts() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let first = coordinator.submit(bed.spec(1, 1)).await;
    coordinator
        .jobs()
        .await
        .cancel_job(pb::CancelJobRequest { name: first.clone() })
        .await
        .expect("cancelled");
    let second = coordinator.submit(bed.spec(1, 1)).await;
    let mut worker = Worker::join(&coordinator, "a").await;
    assert_eq!(worker.assigned().await.assign.job, second);
    assert!(coordinator.attempts(&first).await.is_empty());
    let none = pb::CancelJobRequest { name: "jobs/00000000-0000-0000-0000-000000000000".into() };
    let status = coordinator.jobs().await.cancel_job(none).await.expect_err("no such job");
    assert_eq!(status.code(), tonic::Code::NotFound);
}
