//! The outbox: what is sent when, under which fence, until which acknowledgement.

use super::*;

const JOB: &str = "jobs/a";

fn id(attempt: u32) -> RunId {
    RunId { job: JOB.into(), attempt, place: 3 }
}

fn fence(generation: u32) -> pb::Fence {
    pb::Fence { attempt: 1, generation, generation_id: format!("{generation:016x}") }
}

fn point(step: u64) -> pb::MetricPoint {
    pb::MetricPoint { step, ..Default::default() }
}

fn parted(generation: u32) -> pb::Parted {
    pb::Parted { job: JOB.into(), fence: Some(fence(generation)), place: 3, ..Default::default() }
}

fn drain_at(outbox: &mut Outbox, now: Instant) -> Vec<Message> {
    std::iter::from_fn(|| outbox.next(now)).collect()
}

fn drain(outbox: &mut Outbox) -> Vec<Message> {
    drain_at(outbox, Instant::now())
}

/// A member of this index in generation 1.
fn member(index: u32) -> Outbox {
    let mut outbox = Outbox::default();
    outbox.open(&id(1), fence(0));
    outbox.begun(&id(1), &fence(1), index);
    outbox
}

fn stopped() -> pb::finished::Outcome {
    pb::finished::Outcome::Stopped(pb::Stopped {})
}

#[test]
fn the_end_comes_last_and_all_is_repeated_until_acknowledged() {
    let mut outbox = member(1);
    let now = Instant::now();
    outbox.finished(&id(1), stopped(), now);
    (1..=3).for_each(|step| outbox.point(&id(1), point(step), now));
    outbox.event(&id(1), "evaluated/3", "evaluated", "loss 4.0", now);
    outbox.checkpoint(&id(1), pb::Checkpoint { name: "c".into(), ..Default::default() }, now);
    for _ in 0..2 {
        let sent = drain(&mut outbox);
        assert!(matches!(
            sent.as_slice(),
            [
                Message::ReportEvent(_),
                Message::Progress(_),
                Message::CheckpointWritten(_),
                Message::Finished(_)
            ]
        ));
        assert!(drain(&mut outbox).is_empty(), "nothing twice on one stream");
        outbox.resend();
    }
    outbox.ack_points(JOB, 2);
    outbox.ack_events(JOB, 2, &["evaluated/3".into()]);
    assert!(matches!(drain(&mut outbox)[0], Message::ReportEvent(_)), "that was another attempt's");
    outbox.ack_events(JOB, 1, &["evaluated/3".into()]);
    outbox.ack_checkpoint(JOB, "c");
    outbox.resend();
    match drain(&mut outbox).as_slice() {
        [Message::Progress(progress), Message::Finished(finished)] => {
            assert_eq!((progress.points[0].step, finished.place), (3, 3));
            assert_eq!(finished.fence, Some(fence(1)));
        }
        other => panic!("{other:?}"),
    }
    outbox.ack_finished(&id(2));
    assert_eq!(outbox.ended().count(), 1);
    outbox.ack_finished(&id(1));
    assert!(outbox.is_empty());
}

#[test]
fn what_the_gang_has_once_is_index_0s_to_send() {
    let now = Instant::now();
    let mut outbox = member(1);
    outbox.point(&id(1), point(1), now);
    outbox.event(&id(1), "evaluated/1", "evaluated", "m", now);
    assert!(drain_at(&mut outbox, now).is_empty());
    outbox.own_event(&id(1), "straggler", "m", now);
    match drain_at(&mut outbox, now).as_slice() {
        [Message::ReportEvent(event)] => {
            assert_eq!((event.key.as_str(), event.kind.as_str()), ("3/1", "straggler"))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(drain_at(&mut outbox, now + HOLD).len(), 2, "index 0 did not get them acknowledged");
    // As index 0 of the next generation it sends what is new at once, and all under the new fence.
    outbox.begun(&id(1), &fence(2), 0);
    outbox.point(&id(1), point(2), now);
    match drain_at(&mut outbox, now).as_slice() {
        [Message::ReportEvent(first), Message::ReportEvent(second), Message::Progress(progress)] => {
            assert_eq!((first.key.as_str(), second.key.as_str()), ("evaluated/1", "3/1"));
            assert_eq!(progress.points.len(), 2);
            for fence_sent in [&first.fence, &second.fence, &progress.fence] {
                assert_eq!(*fence_sent, Some(fence(2)));
            }
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_parting_goes_first_and_holds_the_rest_until_the_next_generation() {
    let now = Instant::now();
    let mut outbox = member(0);
    outbox.point(&id(1), point(1), now);
    outbox.parted(&id(1), parted(1), now);
    outbox.parted(&id(1), pb::Parted { step: 7, ..parted(1) }, now);
    for _ in 0..2 {
        match drain(&mut outbox).as_slice() {
            [Message::Parted(parted)] => assert_eq!(parted.step, 7, "only the latest"),
            other => panic!("{other:?}"),
        }
        outbox.resend();
    }
    outbox.opened(&id(1), 1);
    assert_eq!(drain(&mut outbox).len(), 1, "that generation is the one it parted from");
    outbox.opened(&id(1), 2);
    outbox.resend();
    assert!(drain(&mut outbox).is_empty(), "the coordinator knows; the rest waits for its fence");
    outbox.begun(&id(1), &fence(2), 0);
    match drain(&mut outbox).as_slice() {
        [Message::Progress(progress)] => assert_eq!(progress.fence, Some(fence(2))),
        other => panic!("{other:?}"),
    }
    // A run that ends between two generations says all that it has.
    outbox.parted(&id(1), parted(2), now);
    outbox.finished(&id(1), stopped(), now);
    outbox.resend();
    assert!(matches!(drain(&mut outbox).as_slice(), [Message::Progress(_), Message::Finished(_)]));
}

#[test]
fn a_newcomer_takes_over_what_is_not_acknowledged() {
    let now = Instant::now();
    let mut old = member(0);
    (1..=4).for_each(|step| old.point(&id(1), point(step), now));
    old.event(&id(1), "evaluated/3", "evaluated", "m", now);
    old.event(&id(1), "evaluated/3", "evaluated", "m", now);
    old.own_event(&id(1), "straggler", "m", now);
    old.ack_points(JOB, 2);
    let backlog = old.unacknowledged(&id(1));
    assert_eq!(backlog.points.iter().map(|point| point.step).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(backlog.events.iter().map(|event| event.key.as_str()).collect::<Vec<_>>(), ["evaluated/3"]);
    let mut new = member(1);
    new.point(&id(1), point(4), now);
    new.take_over(&id(1), backlog.clone(), now);
    new.take_over(&id(1), backlog.clone(), now);
    assert_eq!(new.unacknowledged(&id(1)).events.len(), 1);
    assert_eq!(new.unacknowledged(&id(1)).points, backlog.points);
    assert!(drain_at(&mut new, now).is_empty());
    assert_eq!(drain_at(&mut new, now + HOLD).len(), 2);
}

#[test]
fn readiness_is_repeated_until_a_generation_opens() {
    let mut outbox = Outbox::default();
    outbox.open(&id(1), fence(0));
    outbox.ready(&id(1), pb::Ready { job: JOB.into(), place: 3, ..Default::default() }, Instant::now());
    assert_eq!(drain(&mut outbox).len(), 1);
    outbox.resend_run(&id(1));
    assert!(matches!(drain(&mut outbox).as_slice(), [Message::Ready(_)]));
    outbox.opened(&id(1), 1);
    outbox.resend();
    assert!(drain(&mut outbox).is_empty());
}

#[test]
fn it_is_bounded() {
    let mut outbox = Outbox::default();
    (0..100).for_each(|attempt| outbox.open(&id(attempt), fence(0)));
    assert_eq!(outbox.runs.len(), RUNS);
    (0..EVENTS + 10).for_each(|_| outbox.own_event(&id(99), "k", "m", Instant::now()));
    let first = outbox.runs[RUNS - 1].events.front().map(|item| item.value.key.clone());
    assert_eq!(first.as_deref(), Some("3/11"));
}
