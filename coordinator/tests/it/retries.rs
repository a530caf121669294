//! Failures of a job's own: tried again where that may heal, with an end; and the times that bound a job.

use lorafleet_proto::v1 as pb;
use pb::{AttemptState, JobState, finished::Outcome};

use crate::{
    bed::{Bed, connect},
    worker::Worker,
};

fn failed(message: &str, may_heal: bool) -> Outcome {
    Outcome::Failed(pb::Failed { message: message.into(), may_heal })
}

async fn run(bed: &Bed, sql: &'static str) {
    sqlx::query(sql).execute(&mut connect(&bed.database_url).await).await.expect("done");
}

#[tokio::test]
async fn what_may_heal_is_tried_again_until_the_tries_are_used_up() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut a = Worker::join(&coordinator, "a").await;
    let queue = pb::QueueSpec { retries: 1, ..Default::default() };
    let job = coordinator.submit(pb::JobSpec { queue: Some(queue), ..bed.spec(1, 1) }).await;
    let (place, _) = a.start().await;
    a.finish(&place, failed("the disk is full", true)).await;
    let waits = coordinator.until_state(&job, JobState::Queued).await;
    assert_eq!((waits.retries_used, waits.infrastructure_failures), (1, 0));
    assert!(
        waits.state_message.starts_with("the disk is full; retry 1 of 1 comes in"),
        "{}",
        waits.state_message
    );
    // Not to wait for the pause.
    run(&bed, "update jobs set ready_time = now() where held").await;
    let (place, _) = a.start().await;
    assert_eq!(place.fence().attempt, 2);
    a.finish(&place, failed("the disk is full", true)).await;
    let ended = coordinator.until_state(&job, JobState::Failed).await;
    assert_eq!(ended.state_message, "the disk is full (after 1 retry)");
    let states: Vec<AttemptState> = coordinator.attempts(&job).await.iter().map(pb::Attempt::state).collect();
    assert_eq!(states, [AttemptState::Failed; 2]);
}

#[tokio::test]
async fn what_would_happen_again_is_not_tried_again() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut a = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = a.start().await;
    a.finish(&place, failed("line 7 is not JSON", false)).await;
    let ended = coordinator.until_state(&job, JobState::Failed).await;
    assert_eq!((ended.retries_used, ended.attempt), (0, 1));
}

#[tokio::test]
async fn a_job_does_not_start_before_its_time_and_fails_when_its_time_is_over() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut a = Worker::join(&coordinator, "a").await;
    let queue = pb::QueueSpec { not_before: "2999-01-01T00:00:00Z".into(), ..Default::default() };
    let later = coordinator.submit(pb::JobSpec { queue: Some(queue), ..bed.spec(1, 1) }).await;
    let held = coordinator.get(&later).await;
    assert_eq!(held.state_message, "does not start before 2999-01-01T00:00:00Z");
    let queue = pb::QueueSpec {
        deadline: "2999-01-01T00:00:00Z".into(),
        max_run_seconds: 3600,
        ..Default::default()
    };
    let late = coordinator.submit(pb::JobSpec { queue: Some(queue), ..bed.spec(1, 1) }).await;
    let (place, _) = a.start().await;
    assert_eq!(place.assign.job, late);
    run(&bed, "update jobs set deadline = now() where deadline is not null").await;
    let ended = coordinator.until_state(&late, JobState::Failed).await;
    assert!(ended.state_message.contains("(queue.deadline)"), "{}", ended.state_message);
    a.stopped().await;
    a.finish(&place, Outcome::Stopped(pb::Stopped {})).await;
    run(&bed, "update jobs set ready_time = now() where held").await;
    let (place, _) = a.start().await;
    assert_eq!(place.assign.job, later);
    run(&bed, "update jobs set max_run_seconds = 1, run_seconds = 9 where state = 'RUNNING'").await;
    let ended = coordinator.until_state(&later, JobState::Failed).await;
    assert!(ended.state_message.contains("(queue.max_run_seconds)"), "{}", ended.state_message);
}
