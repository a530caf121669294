//! From submission to success: what a job, its attempts, history, points and checkpoints look like on the way.

use lorafleet_proto::v1 as pb;
use pb::{AttemptState, JobState};

use crate::{
    bed::Bed,
    worker::{Worker, released},
};

#[tokio::test]
async fn a_job_trains_on_a_gang_and_succeeds() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let job = coordinator.submit(bed.spec(2, 2)).await;
    let waits = coordinator.until(&job, "a reason", |job| !job.state_message.is_empty()).await;
    assert_eq!(waits.state_message, "needs 2 workers, the fleet has no workers; it is number 1 in the queue");
    let mut a = Worker::join(&coordinator, "a").await;
    let mut b = Worker::join(&coordinator, "b").await;
    let (place_a, place_b) = (a.assigned().await, b.assigned().await);
    assert_eq!(place_a.fence(), place_b.fence());
    assert_eq!((place_a.fence().generation, place_a.assign.place + place_b.assign.place), (0, 3));
    a.ready(&place_a).await;
    b.ready(&place_b).await;
    let (begin, same) = (a.begun().await, b.begun().await);
    assert_eq!(begin, same);
    assert_eq!(begin.members.iter().map(|m| (m.index, m.place)).collect::<Vec<_>>(), [(0, 1), (1, 2)]);
    let (place_a, place_b) = (place_a.entered(&begin), place_b.entered(&begin));
    assert!(begin.resume.is_empty(), "from scratch");

    let running = coordinator.get(&job).await;
    assert_eq!((running.state(), running.world_size, running.total_steps), (JobState::Running, 2, 100));
    a.progress(&place_a, 0..=20).await;
    // The other member sends the same points; nothing is stored twice.
    b.progress(&place_b, 15..=20).await;
    assert!(a.checkpoint(&place_a, 10).await.is_empty());
    assert!(a.checkpoint(&place_a, 20).await.is_empty());
    assert_eq!(a.checkpoint(&place_a, 30).await, [place_a.checkpoint(10).name], "two are kept");
    a.progress(&place_a, 21..=100).await;
    a.finish(&place_a, place_a.succeeded(100)).await;
    // The other member is told that it is over.
    b.stopped().await;
    b.finish(&place_b, crate::worker::stopped()).await;

    let done = coordinator.get(&job).await;
    assert_eq!((done.state(), done.step, done.attempt), (JobState::Succeeded, 100, 1));
    assert_eq!(done.result.expect("a result").checkpoint, place_a.checkpoint(100).name);
    assert_eq!(done.latest.expect("a point").step, 100);
    assert_eq!(coordinator.points(&job).await.len(), 50, "a page of 50");
    let kept: Vec<_> = coordinator.checkpoints(&job).await.iter().map(|c| (c.step, c.r#final)).collect();
    assert_eq!(kept, [(100, true), (30, false), (20, false)]);
    let attempts = coordinator.attempts(&job).await;
    assert_eq!((attempts.len(), attempts[0].state()), (1, AttemptState::Succeeded));
    assert_eq!(attempts[0].workers.len(), 2);
    let events = coordinator.events(&job).await;
    let numbers: Vec<u64> = events.iter().map(|event| event.number).collect();
    assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>(), "dense");
    let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["created", "started", "ready", "checkpoint", "checkpoint", "checkpoint", "succeeded"]);
    coordinator.stop().await;
}

#[tokio::test]
async fn the_best_checkpoint_and_the_scores_of_its_evaluation_stay() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut worker = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = worker.start().await;

    let score = |value| vec![pb::Score { name: "accuracy".into(), value }];
    worker.evaluated(&place, 10, score(0.75)).await;
    // The same step again, from a member that has made no evaluation, takes nothing away.
    worker.progress(&place, 10..=10).await;
    worker.progress(&place, 11..=50).await;
    let points = coordinator.points(&job).await;
    assert_eq!((points[0].eval_loss, &points[0].eval_scores), (Some(0.5), &score(0.75)));
    assert_eq!(points[1].eval_scores, []);

    let best = |step| pb::Checkpoint { best: true, ..place.checkpoint(step) };
    assert!(worker.written(&place, best(10)).await.is_empty());
    for step in [20, 30] {
        assert!(worker.checkpoint(&place, step).await.is_empty());
    }
    assert_eq!(
        worker.checkpoint(&place, 40).await,
        [place.checkpoint(20).name],
        "two are kept, and the best"
    );
    // A better one takes its place; the old one is as any other.
    assert_eq!(worker.written(&place, best(50)).await, [place.checkpoint(10).name]);
    let kept: Vec<_> = coordinator.checkpoints(&job).await.iter().map(|c| (c.step, c.best)).collect();
    assert_eq!(kept, [(50, true), (40, false), (30, false)]);
    coordinator.stop().await;
}

#[tokio::test]
async fn two_jobs_submitted_at_once_run_at_the_same_time_on_two_workers() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut a = Worker::join(&coordinator, "a").await;
    let mut b = Worker::join(&coordinator, "b").await;
    let first = coordinator.submit(bed.spec(1, 4)).await;
    let second = coordinator.submit(bed.spec(1, 4)).await;
    let (place_a, place_b) = (a.assigned().await, b.assigned().await);
    let mut jobs = [place_a.assign.job.clone(), place_b.assign.job.clone()];
    jobs.sort();
    assert_eq!(jobs, [first, second]);
    assert_eq!((place_a.assign.place, place_b.assign.place), (1, 1));
}

#[tokio::test]
async fn a_job_that_its_workers_give_back_goes_on_elsewhere_and_nobody_is_blamed() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut a = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = a.start().await;
    a.progress(&place, 1..=7).await;
    a.checkpoint(&place, 7).await;
    a.drain().await;
    a.finish(&place, released(7)).await;
    let queued = coordinator.until_state(&job, JobState::Queued).await;
    assert_eq!(queued.infrastructure_failures, 0);
    a.vanish();

    let mut b = Worker::join(&coordinator, "b").await;
    let (place, begin) = b.start().await;
    assert_eq!(place.fence().attempt, 2);
    assert_eq!(begin.resume.iter().map(|c| c.step).collect::<Vec<_>>(), [7]);
    let attempts = coordinator.attempts(&job).await;
    let states: Vec<_> = attempts.iter().map(|a| (a.state(), a.start_step)).collect();
    assert_eq!(states, [(AttemptState::Released, 0), (AttemptState::Running, 7)]);
}

#[tokio::test]
async fn members_that_loaded_different_things_fail_the_job_and_are_named() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut a = Worker::join(&coordinator, "a").await;
    let mut b = Worker::join(&coordinator, "b").await;
    let job = coordinator.submit(bed.spec(2, 2)).await;
    let (place_a, place_b) = (a.assigned().await, b.assigned().await);
    a.ready(&place_a).await;
    let other = pb::Ready { train_sha256: "e".repeat(64), ..place_b.ready() };
    b.send(pb::worker_message::Message::Ready(other)).await;
    let failed = coordinator.until_state(&job, JobState::Failed).await;
    let message = failed.state_message;
    assert!(message.contains("disagree about the training data"), "{message}");
    assert!(message.contains("a has dddd") && message.contains("b has eeee"), "{message}");
    a.stopped().await;
    b.stopped().await;
}

#[tokio::test]
async fn the_jobs_own_fault_fails_it_with_its_message() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut a = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = a.start().await;
    let message = "the loss is NaN at step 3: lower train.lr";
    a.finish(&place, pb::finished::Outcome::Failed(pb::Failed { message: message.into(), may_heal: false }))
        .await;
    let failed = coordinator.until_state(&job, JobState::Failed).await;
    assert_eq!(failed.state_message, message);
    assert_eq!(coordinator.attempts(&job).await[0].state(), AttemptState::Failed);
    // The worker is free for the next job.
    coordinator.submit(bed.spec(1, 1)).await;
    a.assigned().await;
}

#[tokio::test]
async fn manifests_without_a_row_are_adopted() {
    use lorafleet_store::{Digest, Draft, FileName, write_checkpoint};
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut a = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = a.start().await;
    a.checkpoint(&place, 10).await;
    // Its gang dies between manifest and row.
    let draft = |fence: pb::Fence, step| Draft {
        job: job.trim_start_matches("jobs/").parse().expect("an id"),
        step,
        fence,
        parent: None,
        is_final: false,
        spec_sha256: Digest::of(b"spec"),
        kind: "test".into(),
        scale_bits: 24,
    };
    let names = ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors"];
    let files: std::collections::BTreeMap<FileName, bytes::Bytes> =
        names.map(|name| (name.parse().expect("a name"), name.into())).into();
    write_checkpoint(&bed.store, &draft(place.fence(), 20), &files).await.expect("written");
    // And there is one of a gang that the job never had.
    let stranger = pb::Fence { generation_id: "0".repeat(16), ..place.fence() };
    write_checkpoint(&bed.store, &draft(stranger, 30), &files).await.expect("written");
    a.finish(&place, crate::worker::lost()).await;

    let (_, begin) = a.start().await;
    assert_eq!(begin.resume.iter().map(|c| c.step).collect::<Vec<_>>(), [20, 10]);
}
