//! Several coordinators on one database: each job starts once, one schedules, another takes over.

use lorafleet_proto::v1 as pb;
use pb::JobState;

use crate::{bed::Bed, worker::Worker};

const JOBS: usize = 12;

#[tokio::test]
async fn two_coordinators_run_each_job_exactly_once() {
    let bed = Bed::new().await;
    // Both migrate the same empty database at the same time.
    let (one, two) = (bed.coordinator().await, bed.coordinator().await);
    let mut tasks = Vec::new();
    for i in 0..4 {
        let coordinator = if i % 2 == 0 { &one } else { &two };
        let mut worker = Worker::join(coordinator, &format!("w{i}")).await;
        tasks.push(tokio::spawn(async move {
            loop {
                let (place, _) = worker.start().await;
                worker.progress(&place, 1..=3).await;
                worker.finish(&place, place.succeeded(100)).await;
            }
        }));
    }
    let mut names = Vec::new();
    for i in 0..JOBS {
        names.push(if i % 2 == 0 { &one } else { &two }.submit(bed.spec(1, 1)).await);
    }
    for name in &names {
        let done = two.until_state(name, JobState::Succeeded).await;
        assert_eq!(done.attempt, 1, "started once");
    }
    for task in tasks {
        task.abort();
    }
    assert_eq!(bed.count("select count(*) from attempts").await, JOBS as i64);
    assert_eq!(bed.count("select count(*) from job_events where kind = 'started'").await, JOBS as i64);
    assert_eq!(bed.count("select epoch from scheduler_lease").await, 1, "one led all the time");
}

#[tokio::test]
async fn a_restarted_coordinator_leaves_running_jobs_alone() {
    let bed = Bed::new().await;
    let first = bed.coordinator().await;
    let mut worker = Worker::join(&first, "a").await;
    let job = first.submit(bed.spec(1, 1)).await;
    let (place, _) = worker.start().await;
    worker.progress(&place, 1..=5).await;
    first.stop().await;
    let second = bed.coordinator().await;
    let mut worker = worker.reattach(&second).await;
    // It goes on under the same fence.
    worker.progress(&place, 6..=9).await;
    worker.finish(&place, place.succeeded(100)).await;
    let done = second.until_state(&job, JobState::Succeeded).await;
    assert_eq!((done.attempt, done.infrastructure_failures), (1, 0));
}

#[tokio::test]
async fn a_standby_takes_over_when_the_leader_dies() {
    let bed = Bed::new().await;
    let leader = bed.coordinator().await;
    leader.jobs().await;
    bed.until_led().await;
    let standby = bed.coordinator().await;
    let mut worker = Worker::join(&standby, "a").await;
    leader.kill();
    let job = standby.submit(bed.spec(1, 1)).await;
    assert_eq!(worker.assigned().await.assign.job, job);
    assert_eq!(bed.count("select epoch from scheduler_lease").await, 2);
}
