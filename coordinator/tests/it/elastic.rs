//! Gangs that change: members die, blame each other, join, leave; what old generations say counts for nothing.

use lorafleet_proto::v1 as pb;
use pb::{
    AttemptState, Evidence, JobState, StopReason, coordinator_message::Message as Down,
    worker_message::Message as Up,
};

use crate::{
    bed::{Bed, Coordinator, connect, soon},
    worker::{Place, Worker, lost, released, stopped},
};

/// A member of a gang that trains.
struct Member {
    worker: Worker,
    place: Place,
}

impl Member {
    /// Waits for the next generation, and enters it.
    async fn begins(&mut self) -> pb::Begin {
        let begin = self.worker.begun().await;
        self.place = self.place.entered(&begin);
        begin
    }
}

/// A job on a gang of workers of these names, in order of their index.
async fn gang(bed: &Bed, coordinator: &Coordinator, names: &[&str]) -> (String, Vec<Member>) {
    let mut workers = Vec::new();
    for name in names {
        workers.push(Worker::join(coordinator, name).await);
    }
    let size = u32::try_from(names.len()).expect("a small gang");
    let job = coordinator.submit(bed.spec(size, size)).await;
    let mut members = Vec::new();
    for mut worker in workers {
        let place = worker.assigned().await;
        worker.ready(&place).await;
        members.push(Member { worker, place });
    }
    for member in &mut members {
        member.begins().await;
    }
    members.sort_by_key(|member| member.place.assign.place);
    (job, members)
}

/// Lets a worker into a running job, as the scheduler does where the job may grow.
async fn seat(bed: &Bed, job: &str, worker: &Worker) {
    let mut connection = connect(&bed.database_url).await;
    let sql = "insert into places (job_id, attempt, place, worker_id, worker, address, kind, slot)
               select j.job_id, j.attempt, 1 + (select max(place) from places p where p.job_id = j.job_id), w.worker_id,
                      w.name, w.collective_address, w.kind, 0
               from jobs j, workers w where j.job_id = $1::uuid and w.worker_id = $2::uuid";
    let job = job.trim_start_matches("jobs/").to_owned();
    sqlx::query(sql).bind(job).bind(worker.id.clone()).execute(&mut connection).await.expect("a place");
}

async fn kinds(coordinator: &Coordinator, job: &str) -> Vec<String> {
    coordinator.events(job).await.into_iter().map(|event| event.kind).collect()
}

/// The message of the newest event of a kind.
async fn said(coordinator: &Coordinator, job: &str, kind: &str) -> String {
    let event = || async {
        let events = coordinator.events(job).await;
        events.into_iter().rev().find(|event| event.kind == kind).map(|event| event.message)
    };
    soon(kind, event).await
}

fn names(begin: &pb::Begin) -> Vec<&str> {
    begin.members.iter().map(|member| member.worker.as_str()).collect()
}

#[tokio::test]
async fn when_a_member_dies_the_others_go_on() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&["--lease", "1h"]).await;
    let (job, members) = gang(&bed, &coordinator, &["a", "b", "c"]).await;
    let [mut first, mut second, third] = <[Member; 3]>::try_from(members).ok().expect("three");
    first.worker.progress(&first.place, 1..=5).await;
    let (old, index, dead) = (first.place.clone(), 2, third.worker.name.clone());
    third.worker.vanish();
    for member in [&first, &second] {
        member.worker.part(&member.place, 5, &[(index, Evidence::Gone)]).await;
    }
    let begin = first.begins().await;
    assert_eq!(begin, second.begins().await);
    assert_eq!(begin.fence.as_ref().map(|fence| (fence.attempt, fence.generation)), Some((1, 2)));
    assert_eq!(begin.members.iter().map(|m| (m.index, m.place)).collect::<Vec<_>>(), [(0, 1), (1, 2)]);
    let running = coordinator.get(&job).await;
    assert_eq!((running.state(), running.generation, running.world_size), (JobState::Running, 2, 2));
    let message = said(&coordinator, &job, "generation").await;
    assert!(
        message.starts_with("generation 2: ") && message.contains(&format!("{dead} is gone")),
        "{message}"
    );

    // What the old generation says counts for nothing, and harms nobody.
    first.worker.send(Up::Progress(old.progress(6..=9))).await;
    first.worker.send(Up::Parted(old.parted(9, &[(1, Evidence::Silent)]))).await;
    first.worker.settled(&first.place).await;
    assert_eq!(coordinator.get(&job).await.step, 5);
    first.worker.progress(&first.place, 6..=9).await;
    second.worker.finish(&second.place, second.place.succeeded(100)).await;
    coordinator.until_state(&job, JobState::Succeeded).await;
    let attempts = coordinator.attempts(&job).await;
    assert_eq!((attempts.len(), attempts[0].workers.len()), (1, 3));
}

#[tokio::test]
async fn of_two_that_cannot_reach_each_other_one_is_expelled() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let (job, members) = gang(&bed, &coordinator, &["a", "b"]).await;
    let [mut first, mut second] = <[Member; 2]>::try_from(members).ok().expect("two");
    first.worker.part(&first.place, 0, &[(1, Evidence::Silent)]).await;
    second.worker.part(&second.place, 0, &[(0, Evidence::Silent)]).await;
    assert_eq!(names(&first.begins().await), [first.worker.name.as_str()]);
    let stop = second.worker.stopped().await;
    assert_eq!((stop.reason(), stop.place), (StopReason::Expelled, second.place.assign.place));
    second.worker.finish(&second.place, stopped()).await;
    let message = said(&coordinator, &job, "expelled").await;
    assert!(message.contains("cannot reach each other"), "{message}");
    assert_eq!(coordinator.get(&job).await.attempt, 1);
}

#[tokio::test]
async fn one_that_does_not_part_in_time_is_expelled() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator_with(&["--lease", "1h"]).await;
    let (job, members) = gang(&bed, &coordinator, &["a", "b"]).await;
    let [mut first, mut second] = <[Member; 2]>::try_from(members).ok().expect("two");
    // Its process is frozen: the stream is open, and it says nothing.
    first.worker.part(&first.place, 0, &[(1, Evidence::Stuck)]).await;
    first.begins().await;
    assert_eq!(second.worker.stopped().await.reason(), StopReason::Expelled);
    assert!(said(&coordinator, &job, "expelled").await.contains("took no part in a step in time"));
}

#[tokio::test]
async fn a_newcomer_enters_when_the_others_have_parted() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let (job, mut members) = gang(&bed, &coordinator, &["a"]).await;
    let mut first = members.remove(0);
    first.worker.progress(&first.place, 1..=4).await;
    let mut newcomer = Worker::join(&coordinator, "b").await;
    seat(&bed, &job, &newcomer).await;
    let place = newcomer.assigned().await;
    assert_eq!((place.fence().attempt, place.fence().generation, place.assign.place), (1, 0, 2));
    newcomer.ready(&place).await;
    first.worker.regrouped(&first.place).await;
    first.worker.part_politely(&first.place, 5).await;
    let begin = first.begins().await;
    assert_eq!(begin, newcomer.begun().await);
    assert_eq!(names(&begin), ["a", "b"]);
    assert_eq!(said(&coordinator, &job, "generation").await, "generation 2: a, b (b joined)");
    assert_eq!(said(&coordinator, &job, "joined").await, "b joined after step 5");
    newcomer.progress(&place.entered(&begin), 5..=6).await;
    assert_eq!(coordinator.get(&job).await.world_size, 2);
}

#[tokio::test]
async fn a_newcomer_that_loaded_something_else_or_fails_harms_nobody() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let (job, mut members) = gang(&bed, &coordinator, &["a"]).await;
    let mut first = members.remove(0);
    let mut other = Worker::join(&coordinator, "b").await;
    seat(&bed, &job, &other).await;
    let place = other.assigned().await;
    other.send(Up::Ready(pb::Ready { train_sha256: "e".repeat(64), ..place.ready() })).await;
    assert_eq!(other.stopped().await.reason(), StopReason::Expelled);
    other.finish(&place, stopped()).await;
    let message = said(&coordinator, &job, "expelled").await;
    assert!(message.contains("b does not join: the training data differs: b has eeee"), "{message}");
    assert!(message.contains("the gang has dddd"), "{message}");

    seat(&bed, &job, &other).await;
    let place = other.assigned().await;
    assert_eq!(place.assign.place, 3, "never given twice");
    let failed =
        pb::finished::Outcome::Failed(pb::Failed { message: "its disk is full".into(), may_heal: false });
    other.finish(&place, failed).await;
    assert_eq!(said(&coordinator, &job, "lost").await, "worker b could not join: its disk is full");
    first.worker.progress(&first.place, 1..=2).await;
    let running = coordinator.get(&job).await;
    assert_eq!((running.state(), running.generation), (JobState::Running, 1));
}

#[tokio::test]
async fn a_member_that_leaves_politely_leaves_the_others_at_the_next_step() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let (job, members) = gang(&bed, &coordinator, &["a", "b"]).await;
    let [mut first, mut second] = <[Member; 2]>::try_from(members).ok().expect("two");
    first.worker.finish(&first.place, released(7)).await;
    second.worker.part_politely(&second.place, 7).await;
    assert_eq!(names(&second.begins().await), [second.worker.name.as_str()]);
    let left = said(&coordinator, &job, "left").await;
    assert_eq!(left, format!("{} gave its place back after step 7", first.worker.name));
    let running = coordinator.get(&job).await;
    assert_eq!((running.state(), running.generation, running.world_size), (JobState::Running, 2, 1));
}

#[tokio::test]
async fn a_place_that_is_wanted_elsewhere_is_asked_for() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let (_, members) = gang(&bed, &coordinator, &["a", "b"]).await;
    let [mut first, _second] = <[Member; 2]>::try_from(members).ok().expect("two");
    let mut connection = connect(&bed.database_url).await;
    let sql = "update places set leaving = 'a job of higher priority waits' where place = 1";
    sqlx::query(sql).execute(&mut connection).await.expect("asked");
    let leave = |m| if let Down::Leave(leave) = m { Some(leave) } else { None };
    let leave = first.worker.expect("Leave", leave).await;
    assert_eq!((leave.attempt, leave.place), (1, 1));
    assert_eq!(leave.reason, "a job of higher priority waits");
}

#[tokio::test]
async fn when_all_leave_the_job_waits_and_nobody_is_blamed() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let (job, mut members) = gang(&bed, &coordinator, &["a", "b"]).await;
    for member in &mut members {
        member.worker.drain().await;
    }
    for member in &mut members {
        member.worker.finish(&member.place, released(3)).await;
    }
    let queued = coordinator.until_state(&job, JobState::Queued).await;
    assert_eq!(queued.infrastructure_failures, 0);
    assert_eq!(coordinator.attempts(&job).await[0].state(), AttemptState::Released);
}

#[tokio::test]
async fn when_all_are_lost_the_attempt_is() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let (job, mut members) = gang(&bed, &coordinator, &["a", "b"]).await;
    for member in &mut members {
        member.worker.finish(&member.place, lost()).await;
    }
    soon("the next attempt", || async { (coordinator.get(&job).await.attempt == 2).then_some(()) }).await;
    let attempts = coordinator.attempts(&job).await;
    assert_eq!(attempts[0].state(), AttemptState::Lost);
    assert_eq!(coordinator.get(&job).await.infrastructure_failures, 1);
}

#[tokio::test]
async fn one_that_dies_while_it_loads_is_not_waited_for() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let mut a = Worker::join(&coordinator, "a").await;
    let b = Worker::join(&coordinator, "b").await;
    let job = coordinator.submit(bed.spec(1, 2)).await;
    let place = a.assigned().await;
    a.ready(&place).await;
    b.vanish();
    let begin = a.begun().await;
    assert_eq!(names(&begin), ["a"]);
    let running = coordinator.get(&job).await;
    assert_eq!((running.attempt, running.generation, running.world_size), (1, 1, 1));
}

#[tokio::test]
async fn a_member_that_lost_its_lease_is_left_behind_politely() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let (job, members) = gang(&bed, &coordinator, &["a", "b"]).await;
    let [mut first, second] = <[Member; 2]>::try_from(members).ok().expect("two");
    // It is cut off from the coordinator only: its peers train on with it.
    second.worker.vanish();
    first.worker.regrouped(&first.place).await;
    first.worker.part_politely(&first.place, 12).await;
    assert_eq!(names(&first.begins().await), [first.worker.name.as_str()]);
    assert!(said(&coordinator, &job, "lost").await.contains("its lease ended"));
}

#[tokio::test]
async fn a_checkpoint_of_an_earlier_generation_counts_while_its_writer_holds_its_place() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let (job, members) = gang(&bed, &coordinator, &["a", "b"]).await;
    let [mut first, mut second] = <[Member; 2]>::try_from(members).ok().expect("two");
    let (old_first, old_second) = (first.place.clone(), second.place.clone());
    second.worker.finish(&second.place, lost()).await;
    first.worker.part(&first.place, 20, &[(1, Evidence::Gone)]).await;
    first.begins().await;
    // One that was uploading when the generation changed.
    assert!(first.worker.checkpoint(&old_first, 20).await.is_empty());
    let write = |place: &Place, step| {
        let (job, fence) = (place.assign.job.clone(), place.assign.fence.clone());
        let checkpoint = Some(place.checkpoint(step));
        Up::CheckpointWritten(pb::CheckpointWritten { job, fence, checkpoint })
    };
    second.worker.send(write(&old_second, 30)).await;
    // Its last word once more is acknowledged when all before it was taken in.
    second.worker.finish(&old_second, stopped()).await;
    let steps: Vec<u64> = coordinator.checkpoints(&job).await.iter().map(|c| c.step).collect();
    assert_eq!(steps, [20]);
}

#[tokio::test]
async fn an_event_that_several_members_report_is_stored_once_and_all_are_told() {
    let bed = Bed::new().await;
    let coordinator = bed.coordinator().await;
    let (job, members) = gang(&bed, &coordinator, &["a", "b"]).await;
    let [mut first, mut second] = <[Member; 2]>::try_from(members).ok().expect("two");
    // Both are seen to run it.
    first.worker.drain().await;
    second.worker.drain().await;
    first.worker.send(Up::ReportEvent(first.place.event("evaluated/50", "loss 2"))).await;
    first.worker.event_acked("evaluated/50").await;
    second.worker.event_acked("evaluated/50").await;
    second.worker.send(Up::ReportEvent(second.place.event("evaluated/50", "loss 2"))).await;
    second.worker.event_acked("evaluated/50").await;
    let kinds = kinds(&coordinator, &job).await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "said").count(), 1);
}
