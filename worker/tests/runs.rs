//! Whole runs on the example's base: a scripted coordinator, real workers, real sockets, a real store.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use lorafleet_proto::v1 as pb;
use pb::{coordinator_message::Message as Down, finished::Outcome};
use support::{Fleet, Worker, fence, generation};

const JOB: &str = "jobs/test";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_trains_to_its_end() {
    let fleet = Fleet::start().await;
    let (coordinator, spec) = (&fleet.coordinator, fleet.spec(5));
    let _worker = Worker::start(&fleet, "a", 2);
    coordinator.run(JOB, &fence(1), &spec, &["a"], &[]).await;
    let succeeded = coordinator.success("a", &fence(1)).await;

    let result = succeeded.result.unwrap();
    let (before, after) = (result.eval_loss_before.unwrap(), result.eval_loss_after.unwrap());
    assert!(after < before, "{after} after, {before} before");
    assert!(result.eval_tokens > 0 && result.bytes_sent_per_step == 0);
    assert_eq!(result.answers.len(), 1);
    let data = result.data.unwrap();
    assert_eq!((data.format.as_str(), data.examples + data.skipped), ("chat", 32));
    let checkpoint = succeeded.checkpoint.unwrap();
    assert!(checkpoint.r#final && checkpoint.step == 5 && checkpoint.name == result.checkpoint);
    let names: Vec<&str> = checkpoint.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors"]);
    let weights = std::fs::read(fleet.file(&checkpoint, "adapter_model.safetensors")).unwrap();
    assert_eq!(lorafleet_store::Digest::of(&weights).to_string(), result.adapter_sha256);

    let points = coordinator.points("a", &fence(1));
    assert_eq!(points.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    let evaluated = points.values().filter(|point| point.eval_loss.is_some()).map(|point| point.step);
    assert_eq!(evaluated.collect::<Vec<_>>(), [0, 3, 5]);
    assert_eq!(points[&0].eval_loss, Some(before));
    assert!(points[&5].loss > 0.0 && points[&5].tokens > 0 && points[&5].seconds_left == 0.0);
    let steps: Vec<u64> = coordinator.checkpoints("a").iter().map(|checkpoint| checkpoint.step).collect();
    assert_eq!(steps, [4, 2]);
    assert_eq!(coordinator.events("a"), ["evaluated", "evaluated", "evaluated"]);
    coordinator.heartbeat("a", |heartbeat| heartbeat.running.is_empty()).await;
}

/// The promise of exact sums: the same file, on any number of workers and threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_two_and_three_workers_make_the_same_adapter() {
    let fleet = Fleet::start().await;
    let (coordinator, spec) = (&fleet.coordinator, fleet.spec(4));
    let _workers = [("a", 1), ("b", 2), ("c", 1)].map(|(name, threads)| Worker::start(&fleet, name, threads));
    let mut adapters = Vec::new();
    for (attempt, gang) in [(1, &["a"][..]), (2, &["b", "a"]), (3, &["c", "a", "b"])] {
        let fence = fence(attempt);
        coordinator.run(JOB, &fence, &spec, gang, &[]).await;
        let all =
            futures::future::join_all(gang.iter().map(|worker| coordinator.success(worker, &fence))).await;
        assert!(all.iter().all(|succeeded| *succeeded == all[0]), "members report different results");
        adapters.push(all[0].result.clone().unwrap());
    }
    for result in &adapters {
        assert_eq!(result.adapter_sha256, adapters[0].adapter_sha256);
        assert_eq!(result.eval_loss_after, adapters[0].eval_loss_after);
    }
    // 2(N−1)/N of the buffer: parameters, and a few words beside them.
    let parameters = adapters[0].trainable_parameters * 8;
    for (result, share) in [(&adapters[1], 1.0), (&adapters[2], 4.0 / 3.0)] {
        let payload = parameters as f64 * share;
        let sent = result.bytes_sent_per_step as f64;
        assert!((payload..payload + 1024.0).contains(&sent), "{sent} bytes a step, {payload} expected");
    }
}

/// What only one worker does: put out of its first generation before it is done, it begins anew in the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_is_evaluated_and_merged() {
    let fleet = Fleet::start_tiny().await;
    let (coordinator, spec) = (&fleet.coordinator, fleet.spec(3));
    let _worker = Worker::start(&fleet, "a", 1);
    coordinator.run(JOB, &fence(1), &spec, &["a"], &[]).await;
    let trained = coordinator.success("a", &fence(1)).await;
    let about = |action: pb::Action| {
        let mut spec = pb::JobSpec { action: action.into(), ..spec.clone() };
        let start = pb::AdapterRef { job: JOB.into(), ..Default::default() };
        spec.adapter.as_mut().unwrap().start = Some(start);
        spec.eval.as_mut().unwrap().prompts.clear();
        spec.workers = Some(pb::WorkersSpec { min: 1, max: 1 });
        let data = spec.data.as_mut().unwrap();
        data.train.clear();
        if action == pb::Action::Merge {
            data.eval.clear();
        }
        spec
    };
    coordinator.assign("jobs/gone", &fence(2), &about(pb::Action::Merge), &["a"]).await;
    let Outcome::Failed(failed) = coordinator.outcome("a", &fence(2)).await else {
        panic!("it has no adapter")
    };
    assert!(failed.message.contains("jobs/test has no final checkpoint"), "{}", failed.message);

    coordinator.set_adapter(trained.checkpoint);
    let trained = trained.result.unwrap();
    for (attempt, action) in [(3, pb::Action::Evaluate), (4, pb::Action::Merge)] {
        let (job, first, second) = ("jobs/about", generation(attempt, 1), generation(attempt, 2));
        coordinator.assign(job, &first, &about(action), &["a"]).await;
        coordinator.ready("a", &first).await;
        let regroup = pb::Regroup { job: job.to_owned(), fence: Some(first.clone()) };
        coordinator.send("a", Down::Regroup(regroup)).await;
        coordinator.begin(job, &first, &[("a", 1)], &[]).await;
        assert!(coordinator.parted("a", &first).await.polite);
        coordinator.begin(job, &second, &[("a", 1)], &[]).await;
        let done = coordinator.success("a", &second).await;
        let result = done.result.unwrap();
        if action == pb::Action::Evaluate {
            assert_eq!((done.checkpoint, result.eval_loss_after), (None, trained.eval_loss_after));
            assert_eq!(result.adapter_sha256, trained.adapter_sha256);
            assert_eq!(coordinator.points("a", &second)[&0].eval_loss, trained.eval_loss_after);
        } else {
            let checkpoint = done.checkpoint.unwrap();
            assert!(checkpoint.r#final && checkpoint.name.ends_with(&second.generation_id), "{checkpoint:?}");
            let config = std::fs::read(fleet.file(&checkpoint, "config.json")).unwrap();
            assert!(!config.is_empty() && fleet.file(&checkpoint, "tokenizer.json").is_file());
            let weights = std::fs::read(fleet.file(&checkpoint, "model.safetensors")).unwrap();
            assert_eq!(lorafleet_store::Digest::of(&weights).to_string(), result.adapter_sha256);
        }
    }
}

/// One member leaves politely, and the other goes on from memory; then that one leaves too, and checkpoints are read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drained_members_leave_and_the_job_resumes_to_the_same_adapter() {
    let fleet = Fleet::start().await;
    let coordinator = &fleet.coordinator;
    let mut spec = fleet.spec(24);
    spec.eval.as_mut().unwrap().prompts.clear();
    spec.eval.as_mut().unwrap().every = 0;
    let [a, b, _c, _d] = ["a", "b", "c", "d"].map(|name| Worker::start(&fleet, name, 1));
    coordinator.run(JOB, &fence(1), &spec, &["a", "b"], &[]).await;
    coordinator.step("a", &fence(1), 3).await;
    b.drain.cancel();
    let Outcome::Released(pb::Released { step }) = coordinator.outcome("b", &fence(1)).await else {
        panic!("b is not released")
    };
    let parted = coordinator.parted("a", &fence(1)).await;
    assert!(parted.polite && parted.suspicions.is_empty() && (3..24).contains(&step), "{parted:?}, {step}");
    assert_eq!(parted.step, step, "both leave at the same boundary");
    b.running.await.unwrap().unwrap();
    assert!(!b.state.is_ready() && a.state.is_ready());

    coordinator.begin(JOB, &generation(1, 2), &[("a", 1)], &coordinator.checkpoints("a")).await;
    coordinator.step("a", &generation(1, 2), step + 1).await;
    assert!(!coordinator.events("a").contains(&"resumed".to_owned()), "no checkpoint is read");
    a.drain.cancel();
    let Outcome::Released(pb::Released { step }) = coordinator.outcome("a", &fence(1)).await else {
        panic!("a is not released")
    };
    let resume = coordinator.checkpoints("a");
    assert_eq!(resume[0].step, step, "a checkpoint holds the last step");

    coordinator.run(JOB, &fence(2), &spec, &["c", "d"], &resume).await;
    let resumed = coordinator.success("c", &fence(2)).await.result.unwrap();
    coordinator.success("d", &fence(2)).await;
    let points = coordinator.points("c", &fence(2));
    // What the attempt before had not heard acknowledged came with the checkpoint, under its number.
    assert_eq!(first_step_of(2, &points), Some(step + 1));
    assert!(points.values().filter(|point| point.attempt != 2).all(|p| p.attempt == 1 && p.step <= step));
    assert!(coordinator.events("c").contains(&"resumed".to_owned()));

    // The newest checkpoint is torn: the one before it is taken, to the same result.
    std::fs::write(fleet.file(&resume[0], "optimizer.safetensors"), b"torn").unwrap();
    coordinator.run(JOB, &fence(3), &spec, &["d"], &resume).await;
    let fallen_back = coordinator.success("d", &fence(3)).await.result.unwrap();
    assert!(coordinator.events("d").contains(&"checkpoint-refused".to_owned()));
    assert_eq!(first_step_of(3, &coordinator.points("d", &fence(3))), Some(resume[1].step + 1));

    coordinator.run(JOB, &fence(4), &spec, &["c"], &[]).await;
    let undisturbed = coordinator.success("c", &fence(4)).await.result.unwrap();
    for result in [resumed, fallen_back] {
        assert_eq!(result.adapter_sha256, undisturbed.adapter_sha256);
        assert_eq!(result.eval_loss_before, undisturbed.eval_loss_before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_one_member_and_tells_the_other() {
    let fleet = Fleet::start().await;
    let (coordinator, spec) = (&fleet.coordinator, fleet.spec(100_000));
    let _workers = ["a", "b"].map(|name| Worker::start(&fleet, name, 1));
    coordinator.run(JOB, &fence(1), &spec, &["a", "b"], &[]).await;
    coordinator.step("a", &fence(1), 1).await;
    coordinator.stop("b", JOB, &fence(1), 2, pb::StopReason::Expelled).await;
    assert_eq!(coordinator.outcome("b", &fence(1)).await, Outcome::Stopped(pb::Stopped {}));
    let parted = coordinator.parted("a", &fence(1)).await;
    assert!(!parted.polite && parted.message.contains("goes on without it"), "{}", parted.message);
    assert_eq!(parted.suspicions, [], "what a peer tells is no evidence");
    // The other one waits for its next generation, and is known to.
    coordinator.heartbeat("a", |heartbeat| heartbeat.running.iter().any(|run| run.place == 1)).await;
    coordinator.stop("a", JOB, &fence(1), 1, pb::StopReason::Cancelled).await;
    assert_eq!(coordinator.outcome("a", &fence(1)).await, Outcome::Stopped(pb::Stopped {}));
    // Both take the next job; one that was never begun is stopped as well.
    coordinator.assign(JOB, &fence(2), &spec, &["a"]).await;
    coordinator.stop("a", JOB, &fence(2), 1, pb::StopReason::Stale).await;
    assert_eq!(coordinator.outcome("a", &fence(2)).await, Outcome::Stopped(pb::Stopped {}));
    coordinator.run(JOB, &fence(3), &fleet.spec(1), &["a", "b"], &[]).await;
    coordinator.success("b", &fence(3)).await;
}

/// A member regroups at a boundary, and a newcomer enters with it; a third gives its place back while it loads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gang_regroups_with_a_newcomer() {
    let fleet = Fleet::start().await;
    let (coordinator, spec) = (&fleet.coordinator, fleet.spec(60));
    let _workers = ["a", "b", "c"].map(|name| Worker::start(&fleet, name, 1));
    coordinator.run(JOB, &fence(1), &spec, &["a"], &[]).await;
    coordinator.place(JOB, &fence(1), &spec, "c", 2).await;
    let leave = pb::Leave { job: JOB.into(), attempt: 1, place: 2, reason: "another job needs it".into() };
    coordinator.send("c", Down::Leave(leave)).await;
    assert_eq!(coordinator.outcome("c", &fence(1)).await, Outcome::Released(pb::Released { step: 0 }));
    coordinator.place(JOB, &fence(1), &spec, "b", 3).await;
    coordinator.ready("b", &fence(1)).await;
    let regroup = pb::Regroup { job: JOB.into(), fence: Some(fence(1)) };
    coordinator.send("a", Down::Regroup(regroup)).await;
    assert!(coordinator.parted("a", &fence(1)).await.polite);
    let second = generation(1, 2);
    coordinator.begin(JOB, &second, &[("a", 1), ("b", 3)], &[]).await;
    let in_second = |run: &pb::RunningJob| run.fence.as_ref() == Some(&second) && run.step > 0;
    coordinator.heartbeat("b", |heartbeat| heartbeat.running.iter().any(in_second)).await;
    let both = [coordinator.success("a", &fence(1)).await, coordinator.success("b", &fence(1)).await];
    assert_eq!(both[0], both[1]);
    assert_eq!(coordinator.points("a", &fence(1)).len(), 61);
    coordinator.run(JOB, &fence(2), &spec, &["c"], &[]).await;
    let undisturbed = coordinator.success("c", &fence(2)).await.result.unwrap();
    assert_eq!(both[0].result.as_ref().unwrap().adapter_sha256, undisturbed.adapter_sha256);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn training_goes_on_without_the_coordinator_and_nothing_is_lost() {
    let fleet = Fleet::start().await;
    let (coordinator, spec) = (&fleet.coordinator, fleet.spec(12));
    let _worker = Worker::start(&fleet, "a", 2);
    coordinator.set_acks(false);
    coordinator.run(JOB, &fence(1), &spec, &["a"], &[]).await;
    coordinator.step("a", &fence(1), 2).await;
    coordinator.hang_up("a").await;
    coordinator.success("a", &fence(1)).await;
    assert!(coordinator.attachments() >= 2);
    let steps: Vec<u64> = coordinator.points("a", &fence(1)).keys().copied().collect();
    assert_eq!(steps, (0..=12).collect::<Vec<_>>());
    // Not acknowledged: still listed, and repeated on the next stream; then forgotten.
    coordinator.heartbeat("a", |heartbeat| heartbeat.running.len() == 1).await;
    coordinator.set_acks(true);
    coordinator.hang_up("a").await;
    coordinator.heartbeat("a", |heartbeat| heartbeat.running.is_empty()).await;
}

/// A process of the same name ends this one, with an error that says what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_superseded_worker_gives_up() {
    let fleet = Fleet::start().await;
    let worker = Worker::start(&fleet, "twin", 1);
    fleet.coordinator.heartbeat("twin", |_| true).await;
    fleet.coordinator.send("twin", Down::Unknown(pb::Unknown { superseded: true })).await;
    let error = worker.running.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("\"twin\"") && error.contains("a name of its own"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_jobs_own_faults_are_told_as_such() {
    let fleet = Fleet::start().await;
    let coordinator = &fleet.coordinator;
    let _worker = Worker::start(&fleet, "a", 1);
    let digest = "0".repeat(64);
    let mut no_target = fleet.spec(2);
    no_target.adapter.as_mut().unwrap().targets = vec!["no_such_layer".into()];
    let mut no_base = fleet.spec(2);
    no_base.base.as_mut().unwrap().sha256 = digest.clone();
    let mut no_data = fleet.spec(2);
    no_data.data.as_mut().unwrap().train[0].sha256 = digest.clone();
    let mut bad_rank = fleet.spec(2);
    bad_rank.adapter.as_mut().unwrap().rank = 100_000;
    let mut diverging = fleet.spec(50);
    diverging.train.as_mut().unwrap().lr = 1e30;
    let cases = [
        (no_target, "q_proj"),
        (no_base, "upload it again"),
        (no_data, "data.train"),
        (bad_rank, "rank"),
        (diverging, "train.lr"),
    ];
    for ((spec, expected), attempt) in cases.into_iter().zip(1..) {
        let fence = fence(attempt);
        if expected == "train.lr" {
            coordinator.run(JOB, &fence, &spec, &["a"], &[]).await;
        } else {
            coordinator.assign(JOB, &fence, &spec, &["a"]).await;
        }
        match coordinator.outcome("a", &fence).await {
            Outcome::Failed(failed) => assert!(failed.message.contains(expected), "{}", failed.message),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_worker_drains_at_once() {
    let fleet = Fleet::start().await;
    let worker = Worker::start(&fleet, "a", 1);
    fleet.coordinator.heartbeat("a", |heartbeat| !heartbeat.draining).await;
    worker.drain.cancel();
    worker.running.await.unwrap().unwrap();
    fleet.coordinator.heartbeat("a", |heartbeat| heartbeat.draining).await;
}

/// A data set may be several files of several kinds; its digest is that of their digests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_other_kinds_are_one_data_set() {
    let fleet = Fleet::start().await;
    let (coordinator, mut spec) = (&fleet.coordinator, fleet.spec(2));
    let formats = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/formats");
    let mut files = Vec::new();
    for name in ["chat.parquet", "conversations.json"] {
        let bytes = std::fs::read(formats.join(name)).unwrap();
        let digest = lorafleet_store::Digest::of(&bytes);
        fleet.store.put(&lorafleet_store::layout::dataset(&digest), bytes.into()).await.unwrap();
        files.push(pb::DataRef { source: name.into(), sha256: digest.to_string() });
    }
    spec.data.as_mut().unwrap().train = files;
    let _worker = Worker::start(&fleet, "a", 2);
    coordinator.run(JOB, &fence(1), &spec, &["a"], &[]).await;
    let data = coordinator.success("a", &fence(1)).await.result.unwrap().data.unwrap();
    assert_eq!((data.format.as_str(), data.container.as_str()), ("chat", "JSON and Parquet"));
    assert_eq!(data.examples + data.skipped, 26);
}

/// The first step that an attempt computed itself.
fn first_step_of(attempt: u32, points: &BTreeMap<u64, pb::MetricPoint>) -> Option<u64> {
    points.values().find(|point| point.attempt == attempt).map(|point| point.step)
}
