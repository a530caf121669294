//! Quotas of tenants: which submissions are refused, and which jobs wait, each told by which quota.

use lorafleet_proto::v1 as pb;
use pb::{JobState, sweep_parameter::Choices, sweeps_client::SweepsClient};
use tonic::{Code, Status};

use crate::{
    bed::{Bed, Coordinator, connect},
    worker::Worker,
};

async fn set(bed: &Bed, quota: &'static str) {
    sqlx::query(quota).execute(&mut connect(&bed.database_url).await).await.expect("a quota is set");
}

async fn submit(coordinator: &Coordinator, spec: pb::JobSpec, request_id: &str) -> Result<String, Status> {
    let request =
        pb::CreateJobRequest { spec: Some(spec), request_id: request_id.into(), ..Default::default() };
    Ok(coordinator.jobs().await.create_job(request).await?.into_inner().name)
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> String {
    let status = answer.expect_err("refused");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    status.message().to_owned()
}

#[tokio::test]
async fn a_submission_beyond_a_quota_is_refused_whole_with_what_is_used_and_the_limit() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    bed.until_led().await;
    set(&bed, "update tenants set max_queued = 3").await;
    let id = uuid::Uuid::new_v4().to_string();
    let first = submit(&coordinator, bed.spec(1, 1), &id).await.expect("room for it");
    let specs = vec![bed.spec(1, 1); 3];
    let jobs = pb::CreateJobsRequest { specs, ..Default::default() };
    let message = refused(coordinator.jobs().await.create_jobs(jobs).await);
    let says = "tenant default may have 3 jobs in the queue (max_queued): 1 wait, and this submission has 3;";
    assert!(message.starts_with(says), "{message}");
    let range = pb::SweepRange { first: 1, last: 3, step: 1 };
    let seed = pb::SweepParameter { path: "train.seed".into(), choices: Some(Choices::Range(range)) };
    let sweep = pb::SweepSpec { parameters: vec![seed], ..Default::default() };
    let sweep =
        pb::CreateSweepRequest { spec: Some(bed.spec(1, 1)), sweep: Some(sweep), ..Default::default() };
    let mut sweeps = SweepsClient::new(coordinator.channel().await);
    assert!(refused(sweeps.create_sweep(sweep).await).starts_with(says));
    assert_eq!(bed.count("select (select count(*) from jobs) + (select count(*) from sweeps)").await, 1);
    // Of many at once as many are let in as there is room for.
    let at_once = (0..8).map(|_| submit(&coordinator, bed.spec(1, 1), ""));
    let answers = futures::future::join_all(at_once).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 2);
    // What was accepted before gets its answer, and what has left the queue makes room.
    assert_eq!(submit(&coordinator, bed.spec(1, 1), &id).await.expect("the same"), first);
    coordinator.jobs().await.cancel_job(pb::CancelJobRequest { name: first }).await.expect("cancelled");
    submit(&coordinator, bed.spec(1, 1), "").await.expect("room again");
}

#[tokio::test]
async fn stored_bytes_and_worker_seconds_are_quotas_too() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&["--lease", "1h"]).await;
    let mut worker = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = worker.start().await;
    worker.checkpoint(&place, 10).await;
    set(&bed, "update tenants set max_stored_bytes = 1").await;
    let message = refused(submit(&coordinator, bed.spec(1, 1), "").await);
    let says = "tenant default may keep 1 bytes of checkpoints (max_stored_bytes), and its jobs have 1 in the store;";
    assert!(message.starts_with(says), "{message}");
    set(&bed, "update tenants set max_stored_bytes = null, max_worker_seconds = 3600, window_seconds = 3600")
        .await;
    let used = "insert into usage_hours (tenant_id, hour, worker_seconds)
                select tenant_id, date_trunc('hour', now(), 'UTC'), 1e6 from tenants";
    set(&bed, used).await;
    let waits = coordinator.submit(bed.spec(1, 1)).await;
    // How much lies in the window depends on the minute.
    let begins = "waits for its tenant's quota: tenant default has used ";
    let ends = " worker-seconds in 1 hour, and may use 3600 (max_worker_seconds)";
    let is_told = |says: &str| says.starts_with(begins) && says.ends_with(ends);
    coordinator.until(&waits, "the quota to be named", |job| is_told(&job.state_message)).await;
    // The job that runs goes on to its end, and its worker is given to no other.
    worker.finish(&place, place.succeeded(100)).await;
    coordinator.until_state(&job, JobState::Succeeded).await;
    let request = pb::ExplainJobRequest { name: waits.clone() };
    let told = coordinator.jobs().await.explain_job(request).await.expect("told").into_inner().explanation;
    assert!(told.contains("max_worker_seconds"), "{told}");
    set(&bed, "update tenants set max_worker_seconds = null").await;
    assert_eq!(worker.assigned().await.assign.job, waits);
}
