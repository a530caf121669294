//! WatchJob: the history and the points from a chosen place on, live, without a gap or a double.

use std::time::Duration;

use lorafleet_proto::v1 as pb;
use pb::{JobState, jobs_client::JobsClient, watch_job_response::Update};
use tokio::sync::watch;

use crate::{
    bed::{Bed, Coordinator, LONG},
    worker::{Place, Worker},
};

/// Reads a watch to its end: events, steps, and the last job.
async fn watch_all(coordinator: &Coordinator, request: pb::WatchJobRequest) -> (Vec<u64>, Vec<u64>, pb::Job) {
    let mut jobs = coordinator.jobs().await;
    let mut stream = jobs.watch_job(request).await.expect("a stream").into_inner();
    let (mut events, mut steps, mut last, mut first) = (vec![], vec![], None, true);
    let reading = async {
        while let Some(response) = stream.message().await.expect("a message") {
            last = None;
            match response.update.expect("an update") {
                Update::Event(event) => events.push(event.number),
                Update::Point(point) => steps.push(point.step),
                Update::Job(job) => last = Some(job),
            }
            assert!(!first || last.is_some(), "the job comes first");
            first = false;
        }
    };
    tokio::time::timeout(LONG, reading).await.expect("the watch ends");
    (events, steps, last.expect("the job comes last"))
}

#[tokio::test]
async fn watchers_see_every_event_and_point_once_in_order() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let all = pb::WatchJobRequest { name: job.clone(), ..Default::default() };
    let live = watch_all(&coordinator, all.clone());
    let work = async {
        let mut worker = Worker::join(&coordinator, "a").await;
        let (place, _) = worker.start().await;
        for step in (0..=100).step_by(10) {
            worker.progress(&place, step..=(step + 9).min(100)).await;
            worker.checkpoint(&place, step).await;
        }
        worker.finish(&place, place.succeeded(100)).await;
    };
    let ((events, steps, last), ()) = tokio::join!(live, work);
    assert_eq!(last.state(), JobState::Succeeded);
    assert_eq!(events, (1..=events.len() as u64).collect::<Vec<_>>());
    assert_eq!(steps, (0..=100).collect::<Vec<_>>());
    // Replayed later: the same, also from the middle.
    assert_eq!(watch_all(&coordinator, all).await, (events.clone(), steps, last.clone()));
    let rest = pb::WatchJobRequest { name: job, after_event: 3, after_step: 97 };
    let (rest, steps, _) = watch_all(&coordinator, rest).await;
    assert_eq!((rest, steps), (events[3..].to_vec(), vec![98, 99, 100]));
}

fn said(place: &Place, step: u64) -> pb::worker_message::Message {
    pb::worker_message::Message::ReportEvent(place.event(&format!("step {step}"), "a word about it"))
}

/// What a client has seen of a job; where its stream breaks it goes on from there.
#[derive(Default)]
struct Seen {
    events: Vec<u64>,
    steps: Vec<u64>,
    streams: usize,
}

/// Watches a job to its end by whatever coordinator is there, after this event.
async fn watch_across(current: watch::Receiver<String>, job: &str, after_event: u64) -> Seen {
    let mut seen = Seen::default();
    loop {
        let url = current.borrow().clone();
        let mut request = pb::WatchJobRequest { name: job.into(), after_event, ..Default::default() };
        request.after_event = seen.events.last().copied().unwrap_or(after_event);
        request.after_step = seen.steps.last().copied().unwrap_or(0);
        let Ok(mut jobs) = JobsClient::connect(url).await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let Ok(stream) = jobs.watch_job(request).await else { continue };
        let (mut stream, mut ended) = (stream.into_inner(), false);
        seen.streams += 1;
        while let Ok(Some(response)) = stream.message().await {
            match response.update.expect("an update") {
                Update::Event(event) => seen.events.push(event.number),
                Update::Point(point) => seen.steps.push(point.step),
                Update::Job(job) => ended = job.end_time.is_some(),
            }
        }
        // The last message is the ended job, with all before it sent.
        if ended && seen.steps.last() == Some(&30) {
            return seen;
        }
    }
}

#[tokio::test]
async fn a_watch_goes_on_at_another_coordinator_without_a_gap_or_a_double() {
    let bed = Bed::new().await;
    let first = bed.coordinator_with(&["--lease", "1h"]).await;
    let url = |coordinator: &Coordinator| format!("http://{}", coordinator.address);
    let (now, current) = watch::channel(url(&first));
    let job = first.submit(bed.spec(1, 1)).await;
    let work = async {
        let mut worker = Worker::join(&first, "a").await;
        let (place, _) = worker.start().await;
        let (mut coordinator, mut step) = (first, 0);
        for number in 0..3 {
            for _ in 0..10 {
                step += 1;
                worker.progress(&place, step..=step).await;
                worker.send(said(&place, step)).await;
                worker.event_acked(&format!("step {step}")).await;
            }
            if number < 2 {
                let next = bed.coordinator_with(&["--lease", "1h"]).await;
                worker = worker.reattach(&next).await;
                now.send_replace(url(&next));
                // One dies, one drains.
                if number == 0 {
                    coordinator.kill()
                } else {
                    coordinator.stop().await
                }
                coordinator = next;
            }
        }
        worker.finish(&place, place.succeeded(100)).await;
        coordinator
    };
    let watching = async {
        let (all, late) = (watch_across(current.clone(), &job, 0), watch_across(current, &job, 7));
        tokio::time::timeout(LONG, async { tokio::join!(all, late) }).await.expect("the watches end")
    };
    let ((all, late), last) = tokio::join!(watching, work);
    let count = last.get(&job).await;
    let events: Vec<u64> = last.events(&job).await.iter().map(|event| event.number).collect();
    assert_eq!((all.events.as_slice(), count.state()), (events.as_slice(), JobState::Succeeded));
    assert_eq!(events, (1..=events.len() as u64).collect::<Vec<_>>());
    assert_eq!((late.events.as_slice(), all.streams, late.streams), (&events[7..], 3, 3));
    assert_eq!([all.steps, late.steps], [(1..=30).collect::<Vec<_>>(), (1..=30).collect()]);
}

#[tokio::test]
async fn a_watch_of_no_job_is_not_found() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let name = "jobs/00000000-0000-0000-0000-000000000000".to_owned();
    let request = pb::WatchJobRequest { name, ..Default::default() };
    let status = coordinator.jobs().await.watch_job(request).await.expect_err("no such job");
    assert_eq!(status.code(), tonic::Code::NotFound);
}
