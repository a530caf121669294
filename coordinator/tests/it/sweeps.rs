//! Sweeps over a real Postgres: stored whole or not at all, halved at rungs, carried on by another coordinator.

use lorafleet_proto::v1::{self as pb, sweep_parameter::Choices, worker_message::Message as Up};
use pb::sweeps_client::SweepsClient;
use tonic::{Code, transport::Channel};
use uuid::Uuid;

use crate::{
    bed::{Bed, Coordinator, soon},
    worker::{Place, Worker, stopped},
};

async fn client(coordinator: &Coordinator) -> SweepsClient<Channel> {
    SweepsClient::new(coordinator.channel().await)
}

fn listed(path: &str, json: &[&str]) -> pb::SweepParameter {
    let json = json.iter().map(|&value| value.to_owned()).collect();
    pb::SweepParameter { path: path.into(), choices: Some(Choices::Values(pb::SweepValues { json })) }
}

fn request(bed: &Bed, parameters: Vec<pb::SweepParameter>) -> pb::CreateSweepRequest {
    let eval = Some(pb::EvalSpec { every: 10, ..Default::default() });
    let spec = pb::JobSpec { eval, ..bed.spec(1, 1) };
    let sweep = pb::SweepSpec { parameters, ..Default::default() };
    pb::CreateSweepRequest { spec: Some(spec), sweep: Some(sweep), request_id: Uuid::new_v4().to_string() }
}

fn halved(bed: &Bed, seeds: i64) -> pb::CreateSweepRequest {
    let range = pb::SweepRange { first: 1, last: seeds, step: 1 };
    let seed = pb::SweepParameter { path: "train.seed".into(), choices: Some(Choices::Range(range)) };
    let mut request = request(bed, vec![seed]);
    let every = Some(pb::halving::Every::Evaluations(1));
    let halving = pb::Halving { every, ..Default::default() };
    request.sweep.as_mut().expect("a sweep").halving = Some(halving);
    request
}

async fn get(coordinator: &Coordinator, name: &str) -> pb::Sweep {
    let request = pb::GetSweepRequest { name: name.into() };
    client(coordinator).await.get_sweep(request).await.expect("a sweep").into_inner()
}

async fn children(coordinator: &Coordinator, name: &str) -> Vec<pb::SweepChild> {
    let request = pb::ListSweepChildrenRequest { parent: name.into(), ..Default::default() };
    client(coordinator).await.list_sweep_children(request).await.expect("children").into_inner().children
}

/// Reports an evaluation and waits until it is stored.
async fn evaluate(worker: &mut Worker, place: &Place, step: u64, loss: f64) {
    let mut progress = place.progress(step..=step);
    progress.points[0].eval_loss = Some(loss);
    worker.send(Up::Progress(progress)).await;
    let acked = |message| {
        matches!(&message, pb::coordinator_message::Message::ProgressAck(ack) if ack.step == step)
            .then_some(())
    };
    worker.expect("ProgressAck", acked).await;
}

#[tokio::test]
async fn a_sweep_is_stored_whole_or_not_at_all() {
    let bed = Bed::new().await;
    let (one, two) = (bed.coordinator().await, bed.coordinator().await);
    let parameters = vec![listed("adapter.rank", &["4", "8"]), listed("train.lr", &["1e-3", "1e-4"])];
    let good = request(&bed, parameters.clone());
    let calls = (0..6).map(|i| {
        let (coordinator, good) = (if i % 2 == 0 { &one } else { &two }, good.clone());
        async move { client(coordinator).await.create_sweep(good).await.expect("created").into_inner() }
    });
    let sweeps = futures::future::join_all(calls).await;
    let name = sweeps[0].name.clone();
    assert!(sweeps.iter().all(|sweep| sweep.name == name), "{sweeps:?}");
    assert_eq!(
        (bed.count("select count(*) from sweeps").await, bed.count("select count(*) from jobs").await),
        (1, 4)
    );
    assert_eq!((sweeps[0].children, sweeps[0].queued, sweeps[0].best.is_some()), (4, 4, false));

    let children = children(&two, &name).await;
    let settings: Vec<_> = children.iter().map(|c| lorafleet_spec::sweep::describe(&c.parameters)).collect();
    assert_eq!(settings[1], "adapter.rank=4, train.lr=0.0001");
    let job = one.get(&children[2].job).await;
    let spec = job.spec.expect("a spec");
    assert_eq!((spec.display_name.as_str(), spec.adapter.expect("an adapter").rank), ("games-3", 8));
    let created = one.events(&children[2].job).await.remove(0);
    assert!(
        created.message.contains(&name) && created.message.contains("adapter.rank=8"),
        "{}",
        created.message
    );

    let mut other = good.clone();
    other.sweep.as_mut().expect("a sweep").seed = 7;
    let status = client(&one).await.create_sweep(other).await.expect_err("another sweep");
    assert_eq!(status.code(), Code::AlreadyExists);

    // What only the base can tell of one child: all of them are refused, and that one is named.
    let targets = listed("adapter.targets", &["\"all-linear\"", "[\"q_proj\",\"nothing\"]"]);
    let status =
        client(&one).await.create_sweep(request(&bed, vec![targets])).await.expect_err("no such layer");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("spec.adapter.targets"), "{}", status.message());
    assert!(
        status.message().contains(r#"child 2: adapter.targets=["q_proj","nothing"]"#),
        "{}",
        status.message()
    );

    // What the children come after, and whose adapter they would begin with: told once.
    let nobody = "jobs/0193a0f0-0000-7000-8000-00000000dead".to_owned();
    let mut late = request(&bed, parameters.clone());
    let queue = pb::QueueSpec { after: vec![nobody.clone()], ..Default::default() };
    late.spec.as_mut().expect("a spec").queue = Some(queue);
    let start = pb::AdapterRef { job: children[0].job.clone(), ..Default::default() };
    late.spec.as_mut().expect("a spec").adapter.as_mut().expect("an adapter").start = Some(start);
    let status = client(&one).await.create_sweep(late.clone()).await.expect_err("after nobody");
    let expected = format!("spec.queue.after[0]: is {nobody}, which does not exist (child 1");
    assert!(status.message().contains(&expected), "{}", status.message());
    late.spec.as_mut().expect("a spec").queue = None;
    let sweep = client(&one).await.create_sweep(late).await.expect("stored").into_inner();
    let child = self::children(&one, &sweep.name).await.remove(0);
    let queue = one.get(&child.job).await.spec.expect("a spec").queue.expect("a section");
    assert_eq!(queue.after, [children[0].job.as_str()]);
    let cancel = pb::CancelSweepRequest { name: sweep.name };
    client(&one).await.cancel_sweep(cancel).await.expect("cancelled");

    let range = pb::SweepRange { first: 1, last: 1_000_000, step: 0 };
    let million = pb::SweepParameter { path: "train.seed".into(), choices: Some(Choices::Range(range)) };
    let status = client(&one).await.create_sweep(request(&bed, vec![million])).await.expect_err("too many");
    assert!(
        status.message().contains("would make 1000000 children; a sweep may have 1000"),
        "{}",
        status.message()
    );
    assert_eq!(
        (bed.count("select count(*) from sweeps").await, bed.count("select count(*) from jobs").await),
        (2, 8)
    );
}

/// Four children on four workers: at the first rung two are ended, at the second one, by another coordinator.
#[tokio::test]
async fn halving_ends_the_worse_and_never_the_best() {
    let bed = Bed::new().await;
    let first = bed.coordinator().await;
    let sweep = client(&first).await.create_sweep(halved(&bed, 4)).await.expect("a sweep").into_inner();
    let mut running = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let mut worker = Worker::join(&first, name).await;
        let (place, _) = worker.start().await;
        running.push((worker, place));
    }
    let children_of = children(&first, &sweep.name).await;
    let index = |place: &Place| {
        children_of.iter().find(|child| child.job == place.assign.job).expect("a child of the sweep").index
    };
    running.sort_by_key(|(_, place)| index(place));
    // The lower the index, the better; the worst arrives first, and is not ended before a better one is there.
    for (worker, place) in running.iter_mut().rev() {
        evaluate(worker, place, 10, f64::from(index(place))).await;
    }
    for (mut worker, place) in running.split_off(2) {
        worker.stopped().await;
        worker.finish(&place, stopped()).await;
        let job = first.until_state(&place.assign.job, pb::JobState::Cancelled).await;
        assert!(job.state_message.contains("at step 10: its evaluation loss"), "{}", job.state_message);
        assert!(job.state_message.contains(&sweep.name), "{}", job.state_message);
        let last = first.events(&job.name).await.pop().expect("an event");
        assert_eq!((last.kind.as_str(), &last.message), ("cancelled", &job.state_message));
    }
    let seen = get(&first, &sweep.name).await;
    assert_eq!((seen.running, seen.cancelled, seen.ended_early), (2, 2, 2));
    assert_eq!(seen.best.expect("a best").index, 1);

    // Another coordinator goes on from what is written down.
    let second = bed.coordinator().await;
    let workers: Vec<_> = std::mem::take(&mut running);
    first.stop().await;
    for (worker, place) in workers {
        running.push((worker.reattach(&second).await, place));
    }
    for (worker, place) in &mut running {
        evaluate(worker, place, 20, f64::from(index(place)) / 10.0).await;
    }
    let (mut beaten, place) = running.pop().expect("the second");
    beaten.stopped().await;
    beaten.finish(&place, stopped()).await;
    let job = second.until_state(&place.assign.job, pb::JobState::Cancelled).await;
    assert!(
        job.state_message.contains("0.20000 is number 2 of 2, of which 1 go on"),
        "{}",
        job.state_message
    );
    let (mut best, place) = running.pop().expect("the best");
    best.finish(&place, place.succeeded(100)).await;
    let over = soon("the sweep to be over", || async {
        Some(get(&second, &sweep.name).await).filter(|sweep| sweep.end_time.is_some())
    });
    let over = over.await;
    assert_eq!((over.state(), over.succeeded, over.ended_early), (pb::SweepState::Succeeded, 1, 3));
    let winner = over.best.expect("a best");
    assert_eq!((winner.index, winner.evaluations.len(), winner.ended_at), (1, 2, 0));
    let ended: Vec<u64> = children(&second, &sweep.name).await.iter().map(|child| child.ended_at).collect();
    assert_eq!(ended.iter().filter(|step| **step == 10).count(), 2, "{ended:?}");
    let cancel = pb::CancelSweepRequest { name: sweep.name };
    let status = client(&second).await.cancel_sweep(cancel).await.expect_err("it has ended");
    assert_eq!(status.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn cancelling_a_sweep_ends_what_is_left_of_it() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let sweep = client(&coordinator).await.create_sweep(halved(&bed, 3)).await.expect("a sweep").into_inner();
    let mut worker = Worker::join(&coordinator, "a").await;
    let (place, _) = worker.start().await;
    let cancel = pb::CancelSweepRequest { name: sweep.name.clone() };
    let cancelled = client(&coordinator).await.cancel_sweep(cancel).await.expect("cancelled").into_inner();
    assert_eq!((cancelled.state(), cancelled.cancelled), (pb::SweepState::Cancelled, 3));
    worker.stopped().await;
    worker.finish(&place, stopped()).await;
    let job = coordinator.get(&place.assign.job).await;
    assert_eq!(job.state_message, format!("cancelled with {} by its user", sweep.name));
    let request = pb::ListSweepsRequest::default();
    let listed = client(&coordinator).await.list_sweeps(request).await.expect("a list").into_inner();
    assert_eq!(listed.sweeps.len(), 1);
    let unknown = pb::GetSweepRequest { name: format!("sweeps/{}", Uuid::new_v4()) };
    let status = client(&coordinator).await.get_sweep(unknown).await.expect_err("no such sweep");
    assert_eq!(status.code(), Code::NotFound);
}
