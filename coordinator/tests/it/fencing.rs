//! Stale writes: each kind is refused under an old fence, changes nothing, and is answered with a stop.

use lorafleet_proto::v1 as pb;
use pb::{JobState, worker_message::Message as Up};

use crate::{
    bed::{Bed, Coordinator},
    worker::{Place, Worker, lost, released},
};

/// What is compared with the fence.
fn fenced_writes(place: &Place) -> Vec<(&'static str, Up)> {
    let (job, fence) = (place.assign.job.clone(), place.assign.fence.clone());
    let checkpoint = Some(place.checkpoint(90));
    vec![
        ("progress", Up::Progress(place.progress(90..=90))),
        ("checkpoint", Up::CheckpointWritten(pb::CheckpointWritten { job, fence, checkpoint })),
        ("event", Up::ReportEvent(place.event("late", "late"))),
        ("parted", Up::Parted(place.parted(90, &[(0, pb::Evidence::Gone), (1, pb::Evidence::Gone)]))),
    ]
}

/// Every kind of write that a worker can cause; what is not compared with the fence belongs to the place.
fn writes(place: &Place) -> Vec<(&'static str, Up)> {
    let failed = pb::finished::Outcome::Failed(pb::Failed { message: "late".into(), may_heal: false });
    let mut writes = fenced_writes(place);
    writes.extend([
        ("ready", Up::Ready(pb::Ready { total_steps: 7, ..place.ready() })),
        ("succeeded", Up::Finished(place.finished(place.succeeded(90)))),
        ("failed", Up::Finished(place.finished(failed))),
        ("lost", Up::Finished(place.finished(lost()))),
        ("released", Up::Finished(place.finished(released(90)))),
    ]);
    writes
}

/// All that such a write could change.
async fn all_of(coordinator: &Coordinator, job: &str) -> impl PartialEq + std::fmt::Debug {
    (
        coordinator.get(job).await,
        coordinator.attempts(job).await,
        coordinator.events(job).await,
        coordinator.checkpoints(job).await,
        coordinator.points(job).await,
    )
}

#[tokio::test]
async fn an_old_attempt_can_change_nothing() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut worker = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (old, _) = worker.start().await;
    worker.progress(&old, 1..=3).await;
    worker.finish(&old, lost()).await;
    let (new, _) = worker.start().await;
    assert_eq!(new.fence().attempt, 2);

    worker.settled(&new).await;
    let before = all_of(&coordinator, &job).await;
    for (kind, write) in writes(&old) {
        worker.send(write).await;
        let stop = worker.stopped().await;
        assert_eq!((&stop.fence, stop.place), (&old.assign.fence, old.assign.place), "{kind}");
        assert_eq!(stop.reason(), pb::StopReason::GangLost, "{kind}");
        assert_eq!(all_of(&coordinator, &job).await, before, "{kind}");
    }
    // Of one that holds a live place it is only not taken.
    let forged_id = pb::Fence { generation_id: "0".repeat(16), ..new.fence() };
    let ahead = pb::Fence { generation: 2, ..new.fence() };
    for stale in [new.with_fence(forged_id), new.with_fence(ahead)] {
        for (kind, write) in fenced_writes(&stale) {
            worker.send(write).await;
            worker.settled(&new).await;
            assert_eq!(all_of(&coordinator, &job).await, before, "{kind} under {:?}", stale.fence());
        }
    }
    // The live attempt goes on.
    worker.progress(&new, 4..=5).await;
    worker.finish(&new, new.succeeded(100)).await;
    coordinator.until_state(&job, JobState::Succeeded).await;
}

#[tokio::test]
async fn a_worker_outside_the_gang_can_change_nothing_under_its_fence() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut member = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = member.start().await;
    let mut stranger = Worker::join(&coordinator, "b").await;
    let before = all_of(&coordinator, &job).await;
    for (kind, write) in writes(&place) {
        stranger.send(write).await;
        stranger.stopped().await;
        assert_eq!(all_of(&coordinator, &job).await, before, "{kind}");
    }
}

#[tokio::test]
async fn points_of_a_higher_attempt_win_and_repeated_reports_are_stored_once() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut worker = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (first, _) = worker.start().await;
    worker.progress(&first, 1..=5).await;
    worker.finish(&first, lost()).await;
    let (second, _) = worker.start().await;
    worker.progress(&second, 4..=6).await;
    let attempts: Vec<u32> = coordinator.points(&job).await.iter().map(|p| p.attempt).collect();
    assert_eq!(attempts, [1, 1, 1, 2, 2, 2]);
    assert_eq!(coordinator.get(&job).await.step, 6);

    for number in [1, 2, 2, 1] {
        let event = second.event(&format!("1/{number}"), &format!("number {number}"));
        worker.send(Up::ReportEvent(event)).await;
        worker.event_acked(&format!("1/{number}")).await;
    }
    let events = coordinator.events(&job).await;
    let reported: Vec<&str> =
        events.iter().filter(|e| e.kind == "said").map(|e| e.message.as_str()).collect();
    assert_eq!(reported, ["number 1", "number 2"]);
}

#[tokio::test]
async fn a_message_that_breaks_the_protocol_closes_the_stream() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut worker = Worker::join(&coordinator, "a").await;
    let ready = pb::Ready { job: "jobs/none".into(), ..Default::default() };
    worker.send(Up::Ready(ready)).await;
    worker.stream_ended().await;
}
