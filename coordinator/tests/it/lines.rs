//! What the scheduler goes by is fed from the rows: labels, tenants, priorities that send others back to the queue.

use lorafleet_proto::v1 as pb;
use pb::{AttemptState, JobState, coordinator_message::Message as Down};

use crate::{
    bed::{Bed, Coordinator},
    worker::{Worker, released},
};

/// Leases that no test outlives.
const PATIENT: [&str; 2] = ["--lease", "1h"];

fn selecting(bed: &Bed, name: &str, value: &str) -> pb::JobSpec {
    let selector = [(name.to_owned(), value.to_owned())].into();
    pb::JobSpec { queue: Some(pb::QueueSpec { selector, ..Default::default() }), ..bed.spec(1, 1) }
}

async fn explain(coordinator: &Coordinator, name: &str) -> pb::ExplainJobResponse {
    let request = pb::ExplainJobRequest { name: name.into() };
    coordinator.jobs().await.explain_job(request).await.expect("explained").into_inner()
}

#[tokio::test]
async fn a_job_waits_for_a_worker_with_its_labels() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut plain = Worker::join(&coordinator, "plain").await;
    let picky = coordinator.submit(selecting(&bed, "zone", "a")).await;
    let told = coordinator.until(&picky, "a reason", |job| !job.state_message.is_empty()).await;
    assert_eq!(
        told.state_message,
        "needs a worker with zone=a, the fleet has none; it is number 1 in the queue"
    );
    assert_eq!(explain(&coordinator, &picky).await.position, 1);
    // It stands aside for whoever is content with less.
    let other = coordinator.submit(selecting(&bed, "device", "cpu")).await;
    assert_eq!(plain.assigned().await.assign.job, other);
    let mut fitting = Worker::join_with(&coordinator, "fitting", ("zone", "a")).await;
    assert_eq!(fitting.assigned().await.assign.job, picky);
    let told = explain(&coordinator, &picky).await;
    assert_eq!((told.position, told.state()), (0, JobState::Running));
}

#[tokio::test]
async fn a_job_of_lower_priority_goes_back_to_the_queue_and_resumes() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&PATIENT).await;
    let mut worker = Worker::join(&coordinator, "a").await;
    let low = coordinator.submit(pb::JobSpec { priority: -100, ..bed.spec(1, 1) }).await;
    let (place, _) = worker.start().await;
    worker.progress(&place, 1..=7).await;
    let high = coordinator.submit(pb::JobSpec { priority: 100, ..bed.spec(1, 1) }).await;
    worker.expect("Leave", |message| matches!(message, Down::Leave(_)).then_some(())).await;
    let told = explain(&coordinator, &low).await.explanation;
    assert!(told.contains(&format!("gives way to {high}, which has a higher priority")), "{told}");
    worker.checkpoint(&place, 7).await;
    worker.finish(&place, released(7)).await;
    let (first, _) = worker.start().await;
    assert_eq!(first.assign.job, high);
    let waits = coordinator.until(&low, "it to wait", |job| job.state_message.contains("free")).await;
    assert_eq!((waits.state(), waits.preemptions, waits.infrastructure_failures), (JobState::Queued, 1, 0));
    assert_eq!(coordinator.attempts(&low).await[0].state(), AttemptState::Released);
    worker.finish(&first, first.succeeded(100)).await;
    let (again, begin) = worker.start().await;
    assert_eq!((&again.assign.job, begin.resume[0].step), (&low, 7));
    worker.finish(&again, again.succeeded(100)).await;
    coordinator.until_state(&low, JobState::Succeeded).await;
}

/// The line of one tenant is longer than what a decision looks at; the other's job is seen all the same.
#[tokio::test]
async fn a_long_line_of_one_tenant_hides_nobody() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    bed.until_led().await;
    bed.count(
        "insert into tenants (tenant_id, name) values (gen_random_uuid(), 'small') returning 1::bigint",
    )
    .await;
    let many = coordinator.submit(pb::JobSpec { priority: 5, ..selecting(&bed, "zone", "nowhere") }).await;
    let copies = "with many as (
          insert into jobs (job_id, spec, workers_min, workers_max, priority, selector, tenant_id)
          select gen_random_uuid(), spec, 1, 1, 5, selector, tenant_id from jobs, generate_series(1, 1500)
          returning 1
        ) select count(*) from many";
    assert_eq!(bed.count(copies).await, 1500);
    let own = coordinator.submit(bed.spec(1, 1)).await;
    let small = coordinator.submit(pb::JobSpec { tenant: "small".into(), ..bed.spec(1, 1) }).await;
    let (mut a, mut b) = (Worker::join(&coordinator, "a").await, Worker::join(&coordinator, "b").await);
    let mut started = [a.assigned().await.assign.job, b.assigned().await.assign.job];
    started.sort();
    assert_eq!(started, [own, small], "nor does it hide the tenant's own jobs");
    assert_eq!(coordinator.get(&many).await.state(), JobState::Queued);
}
