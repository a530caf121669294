//! Jobs that come after others: they wait until those succeeded, and are cancelled with those that did not.

use lorafleet_proto::v1 as pb;
use pb::JobState;
use tonic::{Code, Response, Status};

use crate::{
    bed::{Bed, Coordinator},
    worker::Worker,
};

fn named(bed: &Bed, name: &str, after: &[&str]) -> pb::JobSpec {
    let after = after.iter().map(|name| (*name).to_owned()).collect();
    let queue = Some(pb::QueueSpec { after, ..Default::default() });
    pb::JobSpec { display_name: name.into(), queue, ..bed.spec(1, 1) }
}

async fn submit(
    coordinator: &Coordinator,
    specs: Vec<pb::JobSpec>,
    request_id: &str,
) -> Result<Vec<pb::Job>, Status> {
    let request = pb::CreateJobsRequest { specs, request_id: request_id.into(), validate_only: false };
    coordinator.jobs().await.create_jobs(request).await.map(Response::into_inner).map(|made| made.jobs)
}

#[tokio::test]
async fn a_job_starts_when_all_before_it_succeeded() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut a = Worker::join(&coordinator, "a").await;
    let specs = vec![named(&bed, "second", &["first"]), named(&bed, "first", &[])];
    let id = "0193a0f0-0000-7000-8000-000000000001";
    let jobs = submit(&coordinator, specs.clone(), id).await.expect("stored");
    let [second, first] = [&jobs[0].name, &jobs[1].name];
    assert_eq!(jobs[0].state_message, format!("waits for {first} to succeed"));
    // The same request gives the same jobs.
    let again = submit(&coordinator, specs, id).await.expect("stored before");
    assert_eq!([&again[0].name, &again[1].name], [second, first]);
    let explain = pb::ExplainJobRequest { name: second.clone() };
    let told = coordinator.jobs().await.explain_job(explain).await.expect("explained").into_inner();
    assert_eq!(told.waits_for, [first.as_str()]);
    let (place, _) = a.start().await;
    assert_eq!(&place.assign.job, first);
    a.finish(&place, place.succeeded(100)).await;
    assert_eq!(&a.assigned().await.assign.job, second);
}

#[tokio::test]
async fn what_comes_after_one_that_failed_is_cancelled_all_the_way() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut a = Worker::join(&coordinator, "a").await;
    let specs =
        vec![named(&bed, "train", &[]), named(&bed, "next", &["train"]), named(&bed, "last", &["next"])];
    let jobs = submit(&coordinator, specs, "").await.expect("stored");
    let (place, _) = a.start().await;
    let failed = pb::Failed { message: "line 7 is not JSON".into(), may_heal: false };
    a.finish(&place, pb::finished::Outcome::Failed(failed)).await;
    let next = coordinator.until_state(&jobs[1].name, JobState::Cancelled).await;
    let message = format!("cancelled: {} (train), which it comes after, failed", jobs[0].name);
    assert_eq!(next.state_message, message);
    let last = coordinator.until_state(&jobs[2].name, JobState::Cancelled).await;
    assert!(
        last.state_message.contains("(next), which it comes after, was cancelled"),
        "{}",
        last.state_message
    );
    let late =
        submit(&coordinator, vec![named(&bed, "late", &[&jobs[0].name])], "").await.expect_err("too late");
    assert!(late.message().contains("which has failed: this job would never start"), "{}", late.message());
}

/// What is about another job's adapter.
fn about(bed: &Bed, name: &str, action: pb::Action, adapter: &str) -> pb::JobSpec {
    let start = pb::AdapterRef { job: adapter.into(), ..Default::default() };
    let mut spec = pb::JobSpec { action: action.into(), ..named(bed, name, &[]) };
    spec.adapter = Some(pb::AdapterSpec { rank: 4, start: Some(start), ..Default::default() });
    spec.data.as_mut().expect("data").train.clear();
    spec
}

#[tokio::test]
async fn an_evaluation_is_given_the_adapter_that_another_job_trained() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut a = Worker::join(&coordinator, "a").await;
    let specs = vec![about(&bed, "evaluate", pb::Action::Evaluate, "jobs/train"), named(&bed, "train", &[])];
    let id = "0193a0f0-0000-7000-8000-000000000002";
    let jobs = submit(&coordinator, specs.clone(), id).await.expect("stored");
    let [evaluate, train] = [&jobs[0].name, &jobs[1].name];
    let again = submit(&coordinator, specs, id).await.expect("stored before");
    assert_eq!([&again[0].name, &again[1].name], [evaluate, train]);
    let (place, _) = a.start().await;
    assert_eq!((&place.assign.job, &place.assign.adapter), (train, &None));
    a.finish(&place, place.succeeded(100)).await;
    let (place, _) = a.start().await;
    assert_eq!(&place.assign.job, evaluate);
    let adapter = place.assign.adapter.clone().expect("an adapter");
    assert!(
        adapter.name.starts_with(train.as_str()) && adapter.r#final && adapter.step == 100,
        "{adapter:?}"
    );
    let result = pb::JobResult { eval_loss_after: Some(0.5), ..Default::default() };
    let told = pb::Succeeded { result: Some(result), message: "0.5".into(), ..Default::default() };
    a.finish(&place, pb::finished::Outcome::Succeeded(told)).await;
    let done = coordinator.until_state(evaluate, JobState::Succeeded).await;
    assert_eq!((done.state_message.as_str(), done.result.expect("it").eval_loss_after), ("0.5", Some(0.5)));

    // A job that trains must show a checkpoint; and a job that trains nothing has no adapter.
    let train = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = a.start().await;
    a.finish(&place, pb::finished::Outcome::Succeeded(pb::Succeeded::default())).await;
    let failed = coordinator.until_state(&train, JobState::Failed).await;
    assert!(failed.state_message.contains("without a final checkpoint"), "{}", failed.state_message);
    let merge = about(&bed, "merge", pb::Action::Evaluate, evaluate);
    let wrong = submit(&coordinator, vec![merge], "").await.expect_err("no adapter");
    assert!(wrong.message().contains("which trains nothing"), "{}", wrong.message());
}

#[tokio::test]
async fn circles_and_unknown_jobs_are_refused_and_nothing_is_stored() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let circle = vec![named(&bed, "a", &["b"]), named(&bed, "b", &["a"])];
    let wrong = submit(&coordinator, circle, "").await.expect_err("a circle");
    assert_eq!(wrong.code(), Code::InvalidArgument);
    assert!(wrong.message().contains("a comes after b comes after itself"), "{}", wrong.message());
    let nobody = "jobs/0193a0f0-0000-7000-8000-00000000dead";
    let wrong = submit(&coordinator, vec![named(&bed, "a", &[nobody])], "").await.expect_err("unknown");
    assert!(wrong.message().contains("specs[0].queue.after[0]: is jobs/"), "{}", wrong.message());
    assert_eq!(bed.count("select count(*) from jobs").await, 0);
}
