//! Workers shared between jobs: idle ones join, wanted ones leave, the higher priority first.

use lorafleet_proto::v1 as pb;
use pb::{JobState, coordinator_message::Message as Down};

use crate::{
    bed::Bed,
    pair::gang_of_two,
    worker::{Worker, released},
};

/// Leases that no test outlives.
const PATIENT: [&str; 2] = ["--lease", "1h"];

async fn asked_to_leave(worker: &mut Worker) -> pb::Leave {
    worker.expect("Leave", |m| if let Down::Leave(leave) = m { Some(leave) } else { None }).await
}

#[tokio::test]
async fn an_idle_worker_joins_a_running_job() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&PATIENT).await;
    let mut a = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 2)).await;
    let (place_a, _) = a.start().await;
    let mut b = Worker::join(&coordinator, "b").await;
    let place_b = b.assigned().await;
    assert_eq!((&place_b.assign.job, place_b.assign.place, place_b.fence().attempt), (&job, 2, 1));
    // Nobody waits while it loads.
    a.progress(&place_a, 1..=5).await;
    b.ready(&place_b).await;
    a.regrouped(&place_a).await;
    a.part_politely(&place_a, 5).await;
    let (begin_a, begin_b) = (a.begun().await, b.begun().await);
    assert_eq!((begin_a.members.len(), &begin_a.fence), (2, &begin_b.fence));
    let place_a = place_a.entered(&begin_a);
    a.finish(&place_a, place_a.succeeded(100)).await;
    assert_eq!(coordinator.until_state(&job, JobState::Succeeded).await.attempt, 1);
}

#[tokio::test]
async fn a_waiting_job_gets_what_a_running_one_has_above_its_minimum() {
    for priority in [0, 7] {
        let bed = Bed::new().await;
        let coordinator = bed.coordinator_with(&PATIENT).await;
        let (job, (mut a, place_a), (mut b, place_b)) = gang_of_two(&bed, &coordinator, 1).await;
        let waiting = coordinator.submit(pb::JobSpec { priority, ..bed.spec(1, 1) }).await;
        // The newest place goes.
        let leave = asked_to_leave(&mut b).await;
        assert_eq!((&leave.job, leave.place), (&job, place_b.assign.place));
        assert!(leave.reason.contains(&waiting), "{}", leave.reason);
        b.finish(&place_b, released(5)).await;
        a.regrouped(&place_a).await;
        a.part_politely(&place_a, 5).await;
        let begin = a.begun().await;
        assert_eq!(begin.members.len(), 1);
        assert_eq!(b.assigned().await.assign.job, waiting);
        let place_a = place_a.entered(&begin);
        a.finish(&place_a, place_a.succeeded(100)).await;
        assert_eq!(coordinator.until_state(&job, JobState::Succeeded).await.attempt, 1);
    }
}

#[tokio::test]
async fn a_lower_priority_takes_nothing_and_the_higher_starts_first() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&PATIENT).await;
    let (job, (mut a, place_a), (b, _)) = gang_of_two(&bed, &coordinator, 1).await;
    let low = coordinator.submit(pb::JobSpec { priority: -1, ..bed.spec(1, 1) }).await;
    let told = coordinator.until(&low, "a reason", |job| !job.state_message.is_empty()).await;
    assert_eq!(told.state_message, "waits for a worker to be free; it is number 1 in the queue");
    let lower = coordinator.submit(pb::JobSpec { priority: -2, ..bed.spec(1, 1) }).await;
    let high = coordinator.submit(pb::JobSpec { priority: -1, ..bed.spec(2, 2) }).await;
    coordinator.until(&high, "a reason", |job| job.state_message.contains("turn")).await;
    drop(b);
    a.finish(&place_a, place_a.succeeded(100)).await;
    coordinator.until_state(&job, JobState::Succeeded).await;
    assert_eq!(a.assigned().await.assign.job, low);
    // The job for two stands aside, now that one worker is away; the lowest waits for the other one.
    let waits = coordinator.get(&lower).await;
    assert_eq!(waits.state(), JobState::Queued, "{}", waits.state_message);
}
