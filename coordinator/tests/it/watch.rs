//! WatchJob: the history and the points from a chosen place on, live, without a gap or a double.

use lorafleet_proto::v1 as pb;
use pb::{JobState, watch_job_response::Update};

use crate::{
    bed::{Bed, Coordinator, LONG},
    worker::Worker,
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

#[tokio::test]
async fn a_watch_of_no_job_is_not_found() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let name = "jobs/00000000-0000-0000-0000-000000000000".to_owned();
    let request = pb::WatchJobRequest { name, ..Default::default() };
    let status = coordinator.jobs().await.watch_job(request).await.expect_err("no such job");
    assert_eq!(status.code(), tonic::Code::NotFound);
}
