//! Who is waited for when it falls silent, and who holds a name.

use lorafleet_proto::v1 as pb;
use pb::{JobState, coordinator_message::Message as Down};

use crate::{
    bed::{Bed, soon},
    pair::gang_of_two,
    worker::Worker,
};

/// A whole gang is waited for longer than any test takes.
const PATIENT: [&str; 2] = ["--gang-silence", "1h"];

async fn until_gone(bed: &Bed, name: &'static str) {
    let gone: &'static str = match name {
        "b" => "select count(*) from workers where state = 'GONE' and name = 'b'",
        _ => "select count(*) from workers where state = 'GONE' and name = 'c'",
    };
    soon("the end of a lease", || async { (bed.count(gone).await == 1).then_some(()) }).await;
}

#[tokio::test]
async fn a_whole_gang_that_falls_silent_is_waited_for() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&PATIENT).await;
    let (job, (a, place_a), (b, _)) = gang_of_two(&bed, &coordinator, 2).await;
    let idle = Worker::join(&coordinator, "c").await;
    a.freeze();
    b.freeze();
    idle.freeze();
    // The idle one fell silent after them, and has lost its lease.
    until_gone(&bed, "c").await;
    assert_eq!(bed.count("select count(*) from worker_leases").await, 2);
    let mut a = a.reattach(&coordinator).await;
    let _b = b.reattach(&coordinator).await;
    a.progress(&place_a, 1..=5).await;
    a.finish(&place_a, place_a.succeeded(100)).await;
    assert_eq!(coordinator.until_state(&job, JobState::Succeeded).await.attempt, 1);
}

#[tokio::test]
async fn a_gang_whose_connections_closed_is_not_waited_for() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&PATIENT).await;
    let (job, (a, _), (b, _)) = gang_of_two(&bed, &coordinator, 2).await;
    a.vanish();
    b.vanish();
    let (mut c, mut d) = (Worker::join(&coordinator, "c").await, Worker::join(&coordinator, "d").await);
    assert_eq!((c.assigned().await.fence().attempt, d.assigned().await.assign.job), (2, job));
}

#[tokio::test]
async fn one_silent_member_among_others_is_not_waited_for() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&PATIENT).await;
    let (job, (mut a, place_a), (b, _)) = gang_of_two(&bed, &coordinator, 2).await;
    b.freeze();
    until_gone(&bed, "b").await;
    a.regrouped(&place_a).await;
    a.part_politely(&place_a, 5).await;
    let begin = a.begun().await;
    assert_eq!(begin.members.len(), 1);
    let place_a = place_a.entered(&begin);
    a.finish(&place_a, place_a.succeeded(100)).await;
    assert_eq!(coordinator.until_state(&job, JobState::Succeeded).await.attempt, 1);
}

async fn is_unknown(worker: &mut Worker) -> pb::Unknown {
    worker.expect("Unknown", |m| if let Down::Unknown(unknown) = m { Some(unknown) } else { None }).await
}

#[tokio::test]
async fn of_two_processes_of_one_name_the_first_is_told_that_it_is_superseded() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&["--lease", "1h"]).await;
    let mut first = Worker::join(&coordinator, "a").await;
    let mut second = Worker::join(&coordinator, "a").await;
    assert!(is_unknown(&mut first).await.superseded);
    // It hears so again, wherever it attaches.
    let mut first = first.reattach(&coordinator).await;
    assert!(is_unknown(&mut first).await.superseded);
    coordinator.submit(bed.spec(1, 1)).await;
    second.assigned().await;
}

#[tokio::test]
async fn a_process_that_registers_again_is_not_superseded_and_keeps_what_it_runs() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&["--lease", "1h"]).await;
    let mut worker = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 1)).await;
    let (place, _) = worker.start().await;
    let id = worker.id.clone();
    // The answer to its registration was lost: it is who it was.
    let mut worker = worker.register_again(&coordinator).await;
    assert_eq!(worker.id, id);
    worker.progress(&place, 1..=5).await;
    worker.finish(&place, place.succeeded(100)).await;
    assert_eq!(coordinator.until_state(&job, JobState::Succeeded).await.attempt, 1);
    // Its lease ended: it is not known any more, but nobody has its name.
    let mut connection = crate::bed::connect(&bed.database_url).await;
    for statement in ["update workers set state = 'GONE'", "delete from worker_leases"] {
        sqlx::query(statement).execute(&mut connection).await.expect(statement);
    }
    assert!(!is_unknown(&mut worker).await.superseded);
    assert_ne!(worker.register_again(&coordinator).await.id, id);
}
