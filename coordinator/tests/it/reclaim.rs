//! A database that forgot its last commits: what runs ahead of it goes on. The commits are taken back by statements.

use lorafleet_proto::v1 as pb;
use pb::{JobState, coordinator_message::Message as Down};

use crate::{
    bed::{Bed, Coordinator, connect, soon},
    pair::gang_of_two,
    worker::{Place, Worker},
};

/// Leases that no test outlives, so that nothing but what is tested ends a place.
const PATIENT: [&str; 2] = ["--lease", "1h"];

/// Takes commits back. What refers to rows that are to go goes with them.
async fn forget(bed: &Bed, statements: &[&'static str]) {
    let mut connection = connect(&bed.database_url).await;
    sqlx::query("begin").execute(&mut connection).await.expect("a transaction");
    for statement in statements {
        sqlx::query(*statement).execute(&mut connection).await.expect(statement);
    }
    sqlx::query("commit").execute(&mut connection).await.expect("committed");
}

/// Does as it is told until it is in a generation above `above` with so many members.
async fn regathers(worker: &mut Worker, place: &Place, above: u32, members: usize) -> Place {
    let mut place = place.clone();
    loop {
        let told = |m| matches!(m, Down::Begin(_) | Down::Regroup(_)).then_some(m);
        match worker.expect("Begin", told).await {
            Down::Begin(begin) => {
                let generation = begin.fence.as_ref().map_or(0, |fence| fence.generation);
                place = place.entered(&begin);
                if generation > above && begin.members.len() == members {
                    return place;
                }
            }
            Down::Regroup(regroup) if regroup.fence == place.assign.fence => {
                worker.part_politely(&place, 5).await
            }
            _ => {}
        }
    }
}

/// Both are in one generation above `above`.
async fn both_regather(a: (&mut Worker, &Place), b: (&mut Worker, &Place), above: u32) -> (Place, Place) {
    tokio::join!(regathers(a.0, a.1, above, 2), regathers(b.0, b.1, above, 2))
}

/// A gang of two in its first generation, which made some steps.
async fn pair_at_work(bed: &Bed, coordinator: &Coordinator) -> (String, (Worker, Place), (Worker, Place)) {
    let (job, (mut a, place_a), b) = gang_of_two(bed, coordinator, 1).await;
    a.progress(&place_a, 1..=5).await;
    (job, (a, place_a), b)
}

/// The gang ends the job, in the attempt that it was in.
async fn finishes(coordinator: &Coordinator, job: &str, worker: &mut Worker, place: &Place) {
    worker.progress(place, 6..=9).await;
    worker.finish(place, place.succeeded(100)).await;
    let done = coordinator.until_state(job, JobState::Succeeded).await;
    assert_eq!(done.attempt, place.fence().attempt);
    let events = coordinator.events(job).await;
    assert!(events.iter().any(|event| event.kind == "reclaimed"), "{events:?}");
}

/// Nobody was told to stop.
fn was_not_stopped(worker: &mut Worker) {
    let stops = worker.seen().into_iter().filter(|message| matches!(message, Down::Stop(_)));
    assert_eq!(stops.count(), 0);
}

#[tokio::test]
async fn a_forgotten_generation_is_followed_by_one_above_it() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&PATIENT).await;
    let (job, (mut a, place_a), (mut b, place_b)) = pair_at_work(&bed, &coordinator).await;
    // The rows know nothing of the first generation.
    forget(
        &bed,
        &[
            "delete from members",
            "delete from generations",
            "update attempts set phase = 'LOADING'",
            "update places set ready = null",
            "update jobs set generation = 0, generation_id = '', world_size = 0, step = 0, total_steps = 0",
        ],
    )
    .await;
    let (place_a, place_b) = both_regather((&mut a, &place_a), (&mut b, &place_b), 1).await;
    assert_eq!(place_a.fence(), place_b.fence());
    was_not_stopped(&mut a);
    was_not_stopped(&mut b);
    finishes(&coordinator, &job, &mut a, &place_a).await;
}

#[tokio::test]
async fn the_same_number_under_another_id_is_followed_by_a_generation_above_both() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&PATIENT).await;
    let (job, (mut a, place_a), (mut b, place_b)) = pair_at_work(&bed, &coordinator).await;
    forget(
        &bed,
        &[
            "update generations set generation_id = '00000000deadbeef'",
            "update jobs set generation_id = '00000000deadbeef'",
        ],
    )
    .await;
    let (place_a, _) = both_regather((&mut a, &place_a), (&mut b, &place_b), 1).await;
    was_not_stopped(&mut a);
    finishes(&coordinator, &job, &mut a, &place_a).await;
}

#[tokio::test]
async fn a_forgotten_place_is_made_again() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&PATIENT).await;
    let (job, (mut a, place_a), (mut b, place_b)) = pair_at_work(&bed, &coordinator).await;
    // As if b had joined later: the generation with it, and its place, are forgotten.
    forget(
        &bed,
        &[
            "delete from members where place = 2",
            "delete from places where place = 2",
            "update generations set generation_id = '00000000deadbeef', world_size = 1",
            "update jobs set generation_id = '00000000deadbeef', world_size = 1",
        ],
    )
    .await;
    let (place_a, place_b) = both_regather((&mut a, &place_a), (&mut b, &place_b), 1).await;
    assert_eq!(place_a.fence(), place_b.fence());
    was_not_stopped(&mut b);
    finishes(&coordinator, &job, &mut b, &place_b).await;
}

#[tokio::test]
async fn a_newcomer_whose_place_is_forgotten_goes_on_loading() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&PATIENT).await;
    let mut a = Worker::join(&coordinator, "a").await;
    let job = coordinator.submit(bed.spec(1, 2)).await;
    let place_a = a.assigned().await;
    a.ready(&place_a).await;
    let place_a = regathers(&mut a, &place_a, 0, 1).await;
    let mut b = Worker::join(&coordinator, "b").await;
    let place_b = b.assigned().await;
    // And the job has no room by now, so that it is not given a place by the scheduler.
    forget(&bed, &["delete from places where place = 2", "update jobs set workers_max = 1"]).await;
    soon("the place", || async {
        (bed.count("select count(*) from places where place = 2 and live").await == 1).then_some(())
    })
    .await;
    was_not_stopped(&mut b);
    b.ready(&place_b).await;
    let (_, place_b) = both_regather((&mut a, &place_a), (&mut b, &place_b), 1).await;
    finishes(&coordinator, &job, &mut b, &place_b).await;
}

/// The job waits, and is too large for the fleet, so that the scheduler does not start it before it is reclaimed.
const QUEUED_AGAIN: &str =
    "update jobs set state = 'QUEUED', attempt = 0, generation = 0, generation_id = '', kinds = '',
       world_size = 0, step = 0, total_steps = 0, start_time = null, workers_min = 3, workers_max = 3";

#[tokio::test]
async fn a_forgotten_attempt_is_the_live_one_again() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&PATIENT).await;
    let (job, (mut a, place_a), (mut b, place_b)) = pair_at_work(&bed, &coordinator).await;
    forget(&bed, &["delete from attempts", QUEUED_AGAIN]).await;
    let (place_a, _) = both_regather((&mut a, &place_a), (&mut b, &place_b), 1).await;
    let running = coordinator.get(&job).await;
    assert_eq!((running.state(), running.attempt), (JobState::Running, 1));
    was_not_stopped(&mut a);
    was_not_stopped(&mut b);
    finishes(&coordinator, &job, &mut a, &place_a).await;
}

/// The rows know of an attempt before, on a worker that is still there; the gang is in a later one.
#[tokio::test]
async fn a_forgotten_attempt_replaces_the_one_that_the_rows_have() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&PATIENT).await;
    let (job, (a, place_a), (b, place_b)) = pair_at_work(&bed, &coordinator).await;
    let c = Worker::join(&coordinator, "c").await;
    coordinator.stop().await;
    let statements = [
        "update jobs set generation = 0, generation_id = '', world_size = 0, step = 0, total_steps = 0",
        "delete from generations",
        "update attempts set phase = 'LOADING'",
        "delete from places where place = 2",
        "update places set worker = 'c', ready = null, worker_id = (select worker_id from workers where name = 'c')",
    ];
    forget(&bed, &statements).await;
    let (place_a, place_b) = (place_a.in_attempt(2), place_b.in_attempt(2));
    a.lists(&place_a);
    b.lists(&place_b);
    let coordinator = bed.coordinator_with(&PATIENT).await;
    let mut c = c.reattach(&coordinator).await;
    assert_eq!(c.assigned().await.fence().attempt, 1);
    let (mut a, mut b) = (a.reattach(&coordinator).await, b.reattach(&coordinator).await);
    let (place_a, _) = both_regather((&mut a, &place_a), (&mut b, &place_b), 1).await;
    assert_eq!(c.stopped().await.fence.expect("a fence").attempt, 1);
    assert_eq!(coordinator.get(&job).await.attempt, 2);
    finishes(&coordinator, &job, &mut a, &place_a).await;
}

#[tokio::test]
async fn a_last_word_of_a_forgotten_generation_counts() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&PATIENT).await;
    let (job, (mut a, place_a), _b) = pair_at_work(&bed, &coordinator).await;
    // Nor does anybody start it meanwhile: it needs more workers than there are.
    let too_large = "update jobs set workers_min = 3, workers_max = 3";
    forget(&bed, &["delete from attempts", QUEUED_AGAIN, too_large]).await;
    a.finish(&place_a, place_a.succeeded(100)).await;
    coordinator.until_state(&job, JobState::Succeeded).await;
}

#[tokio::test]
async fn a_forgotten_worker_registers_anew_and_is_reclaimed_under_its_new_id() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&PATIENT).await;
    let (job, (mut a, place_a), (b, _)) = pair_at_work(&bed, &coordinator).await;
    // Registrations, places and all that came after are forgotten.
    forget(&bed, &["delete from attempts", QUEUED_AGAIN, "delete from workers"]).await;
    let unknown = |m| if let Down::Unknown(unknown) = m { Some(unknown) } else { None };
    assert!(!a.expect("Unknown", unknown).await.superseded);
    drop(b);
    let before = a.id.clone();
    let mut a = a.register_again(&coordinator).await;
    assert_ne!(a.id, before);
    let place_a = regathers(&mut a, &place_a, 1, 1).await;
    finishes(&coordinator, &job, &mut a, &place_a).await;
}

#[tokio::test]
async fn a_job_that_the_database_does_not_know_is_stopped() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&PATIENT).await;
    let (_, (mut a, place_a), _b) = pair_at_work(&bed, &coordinator).await;
    forget(&bed, &["delete from jobs"]).await;
    let stop = a.stopped().await;
    assert_eq!((stop.reason(), stop.job), (pb::StopReason::Stale, place_a.assign.job));
}
