//! Silent workers, workers started anew, and gangs that lose a member.

use lorafleet_proto::v1 as pb;
use pb::{AttemptState, JobState, StopReason, WorkerState};

use crate::{
    bed::{Bed, soon},
    worker::{Worker, lost, registration, stopped},
};

#[tokio::test]
async fn a_silent_worker_loses_its_lease_and_the_job_goes_on_elsewhere() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut a = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = a.start().await;
    a.progress(&place, 1..=12).await;
    a.checkpoint(&place, 10).await;
    a.vanish();
    let mut b = Worker::join(&coordinator, "b").await;
    let (place, begin) = b.start().await;
    assert_eq!((place.fence().attempt, begin.resume[0].step), (2, 10));
    let attempts = coordinator.attempts(&job).await;
    assert_eq!(attempts[0].state(), AttemptState::Lost);
    assert!(attempts[0].message.contains("worker a: fell silent"), "{}", attempts[0].message);
    // New steps were finished, so nothing counts against the job.
    assert_eq!(coordinator.get(&job).await.infrastructure_failures, 0);
    let list = coordinator.fleet().await.list_workers(pb::ListWorkersRequest::default()).await;
    let list = list.expect("workers").into_inner().workers;
    let states: Vec<_> = list.iter().map(|w| (w.name.as_str(), w.state())).collect();
    assert_eq!(states, [("workers/b", WorkerState::Ready), ("workers/a", WorkerState::Gone)]);
    assert_eq!(list[0].jobs, [job]);
}

#[tokio::test]
async fn a_worker_started_anew_ends_what_its_earlier_process_held() {
    let bed = Bed::new().await;
    // A lease that no test outlives: only the new registration can end it.
    let coordinator = bed.coordinator_with(&["--lease", "1h"]).await;
    let mut old = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    old.start().await;
    let mut new = Worker::join(&coordinator, "a").await;
    let unknown = |m| matches!(m, pb::coordinator_message::Message::Unknown(_)).then_some(());
    old.expect("Unknown", unknown).await;
    let (place, _) = new.start().await;
    assert_eq!(place.fence().attempt, 2);
    let first = &coordinator.attempts(&job).await[0];
    assert!(first.message.contains("worker a: was started anew"), "{}", first.message);
}

#[tokio::test]
async fn when_too_few_are_left_to_begin_they_stop_before_the_next_attempt() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut a = Worker::join(&coordinator, "a").await;
    let mut b = Worker::join(&coordinator, "b").await;
    let job = coordinator.submit(bed.spec(2, 2)).await;
    let (place_a, place_b) = (a.assigned().await, b.assigned().await);
    b.ready(&place_b).await;
    a.finish(&place_a, lost()).await;
    let stop = b.stopped().await;
    assert_eq!((stop.reason(), stop.place), (StopReason::GangLost, place_b.assign.place));
    // Not yet: the other member still runs.
    let closing = coordinator.get(&job).await;
    assert_eq!((closing.state(), closing.attempt), (JobState::Running, 1));
    b.finish(&place_b, stopped()).await;
    let (next_a, next_b) = (a.assigned().await, b.assigned().await);
    assert_eq!((next_a.fence().attempt, next_a.fence()), (2, next_b.fence()));
    let first = &coordinator.attempts(&job).await[0];
    assert!(first.message.contains("the ring broke (could not reach member 1)"), "{}", first.message);
}

#[tokio::test]
async fn a_job_that_kills_its_workers_fails_after_three_attempts_without_a_new_step() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut worker = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    // The first makes steps and does not count; the next three make none that is new.
    let (place, _) = worker.start().await;
    worker.progress(&place, 1..=5).await;
    worker.finish(&place, lost()).await;
    for failures in 1..=3 {
        let (place, _) = worker.start().await;
        worker.progress(&place, 4..=5).await;
        worker.finish(&place, lost()).await;
        assert_eq!(coordinator.get(&job).await.infrastructure_failures, failures);
    }
    let failed = coordinator.get(&job).await;
    assert_eq!((failed.state(), failed.attempt), (JobState::Failed, 4));
    assert!(failed.state_message.contains("3 attempts in a row"), "{}", failed.state_message);
}

#[tokio::test]
async fn a_draining_worker_gets_no_work_and_leaves_at_once() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&["--lease", "1h"]).await;
    let worker = Worker::join(&coordinator, "a").await;
    worker.drain().await;
    let state = || async {
        let request = pb::ListWorkersRequest::default();
        let list = coordinator.fleet().await.list_workers(request).await.expect("workers").into_inner();
        list.workers[0].state()
    };
    soon("draining", || async { (state().await == WorkerState::Draining).then_some(()) }).await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let waits = coordinator.until(&job, "a reason", |job| !job.state_message.is_empty()).await;
    assert_eq!(waits.state_message, "needs a worker, the fleet has no workers; it is number 1 in the queue");
    worker.vanish();
    soon("gone", || async { (state().await == WorkerState::Gone).then_some(()) }).await;
}

#[tokio::test]
async fn a_gang_that_does_not_get_ready_is_taken_apart() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&["--load-limit", "300ms"]).await;
    let mut a = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let place = a.assigned().await;
    assert_eq!(a.stopped().await.reason(), StopReason::GangLost);
    a.finish(&place, stopped()).await;
    let again = a.assigned().await;
    assert_eq!(again.fence().attempt, 2);
    assert!(coordinator.attempts(&job).await[0].message.contains("was not ready within"));
}

#[tokio::test]
async fn a_worker_of_another_protocol_version_is_refused_with_both_versions() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let request = pb::RegisterWorkerRequest { protocol_version: 99, ..registration("a") };
    let status = coordinator.fleet().await.register_worker(request).await.expect_err("refused");
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(status.message().contains("99") && status.message().contains('2'), "{}", status.message());
}
