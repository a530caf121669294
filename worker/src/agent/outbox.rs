//! What the coordinator has not acknowledged yet: kept, bounded, and sent again on every new stream.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use lorafleet_proto::v1 as pb;
use lorafleet_proto::v1::worker_message::Message;
use tracing::warn;

/// Points of one run that are kept: a day at one step a second.
const POINTS: usize = 86_400;
/// Points in one message.
const POINTS_AT_ONCE: usize = 500;
/// Events of one run that are kept.
const EVENTS: usize = 1_000;
/// Checkpoints of one run that are kept.
const CHECKPOINTS: usize = 1_000;
/// Runs whose reports are kept.
const RUNS: usize = 32;

/// One attempt of one job on this worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunId {
    /// `jobs/{id}`.
    pub job: String,
    /// The attempt's fence.
    pub fence: pb::Fence,
}

impl RunId {
    /// From the two fields that every message has.
    pub fn new(job: &str, fence: Option<&pb::Fence>) -> Self {
        Self { job: job.to_owned(), fence: fence.cloned().unwrap_or_default() }
    }
}

/// The reports of all runs whose end is not acknowledged.
#[derive(Default)]
pub struct Outbox {
    runs: Vec<Reports>,
}

/// A report, and whether it went out on the present stream.
struct Item<T> {
    value: T,
    sent: bool,
}

impl<T> Item<T> {
    fn new(value: T) -> Self {
        Self { value, sent: false }
    }
}

struct Reports {
    id: RunId,
    /// Points younger than this wait: every member keeps them, one sends them at once.
    hold: Duration,
    ready: Option<Item<pb::Ready>>,
    points: BTreeMap<u64, (Instant, Item<pb::MetricPoint>)>,
    events: VecDeque<Item<pb::ReportEvent>>,
    last_sequence: u64,
    checkpoints: VecDeque<Item<pb::Checkpoint>>,
    finished: Option<Item<pb::Finished>>,
}

impl Outbox {
    /// A new run begins to report. Its points wait for `hold` before they are sent.
    pub fn open(&mut self, id: &RunId, hold: Duration) {
        if self.find(id).is_some() {
            return;
        }
        if self.runs.len() == RUNS {
            // Every one of them has ended, or it would be the newest.
            let oldest = self.runs.remove(0);
            warn!(job = oldest.id.job, "gave up reporting an old run: the coordinator never acknowledged it");
        }
        self.runs.push(Reports {
            id: id.clone(),
            hold,
            ready: None,
            points: BTreeMap::new(),
            events: VecDeque::new(),
            last_sequence: 0,
            checkpoints: VecDeque::new(),
            finished: None,
        });
    }

    /// Base and data are loaded.
    pub fn ready(&mut self, id: &RunId, ready: pb::Ready) {
        if let Some(run) = self.find(id) {
            run.ready = Some(Item::new(ready));
        }
    }

    /// The gang begins: it is known that all are ready.
    pub fn begun(&mut self, id: &RunId) {
        if let Some(run) = self.find(id) {
            run.ready = None;
        }
    }

    /// A step is finished.
    pub fn point(&mut self, id: &RunId, point: pb::MetricPoint, now: Instant) {
        let Some(run) = self.find(id) else { return };
        run.points.insert(point.step, (now, Item::new(point)));
        if run.points.len() > POINTS {
            run.points.pop_first();
            metrics::counter!(crate::telemetry::REPORTS_DROPPED).increment(1);
        }
    }

    /// Something for the job's history.
    pub fn event(&mut self, id: &RunId, kind: &str, message: &str) {
        let Some(run) = self.find(id) else { return };
        run.last_sequence += 1;
        run.events.push_back(Item::new(pb::ReportEvent {
            job: id.job.clone(),
            fence: Some(id.fence.clone()),
            sequence: run.last_sequence,
            kind: kind.to_owned(),
            message: message.to_owned(),
            key: String::new(),
        }));
        if run.events.len() > EVENTS {
            run.events.pop_front();
            metrics::counter!(crate::telemetry::REPORTS_DROPPED).increment(1);
        }
    }

    /// A checkpoint is whole in the store.
    pub fn checkpoint(&mut self, id: &RunId, checkpoint: pb::Checkpoint) {
        let Some(run) = self.find(id) else { return };
        run.checkpoints.push_back(Item::new(checkpoint));
        if run.checkpoints.len() > CHECKPOINTS {
            run.checkpoints.pop_front();
            metrics::counter!(crate::telemetry::REPORTS_DROPPED).increment(1);
        }
    }

    /// The run is over.
    pub fn finished(&mut self, id: &RunId, outcome: pb::finished::Outcome) {
        if let Some(run) = self.find(id) {
            run.ready = None;
            let (job, fence) = (id.job.clone(), Some(id.fence.clone()));
            run.finished = Some(Item::new(pb::Finished { job, fence, outcome: Some(outcome), place: 0 }));
        }
    }

    /// Whether the run has reports here; `ended`: whether its end is among them.
    pub fn holds(&self, id: &RunId) -> bool {
        self.runs.iter().any(|run| run.id == *id)
    }

    /// Runs whose end is not acknowledged.
    pub fn ended(&self) -> impl Iterator<Item = &RunId> {
        self.runs.iter().filter(|run| run.finished.is_some()).map(|run| &run.id)
    }

    /// Everything is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Everything is to be sent again: the stream is new, or acknowledgements are overdue.
    pub fn resend(&mut self) {
        for run in &mut self.runs {
            run.ready.iter_mut().for_each(|item| item.sent = false);
            run.points.values_mut().for_each(|(_, item)| item.sent = false);
            run.events.iter_mut().for_each(|item| item.sent = false);
            run.checkpoints.iter_mut().for_each(|item| item.sent = false);
            run.finished.iter_mut().for_each(|item| item.sent = false);
        }
    }

    /// The same for one run.
    pub fn resend_run(&mut self, id: &RunId) {
        if let Some(run) = self.find(id) {
            run.ready.iter_mut().chain([]).for_each(|item| item.sent = false);
            run.finished.iter_mut().for_each(|item| item.sent = false);
        }
    }

    /// The next message to send, now marked as sent. A run's end comes after all its other reports.
    pub fn next(&mut self, now: Instant) -> Option<Message> {
        self.runs.iter_mut().find_map(|run| run.next(now))
    }

    /// Points of the job up to `step` are stored.
    pub fn ack_points(&mut self, job: &str, step: u64) {
        for run in self.of_job(job) {
            run.points = run.points.split_off(&(step + 1));
        }
    }

    /// The checkpoint's row is stored.
    pub fn ack_checkpoint(&mut self, job: &str, checkpoint: &str) {
        for run in self.of_job(job) {
            run.checkpoints.retain(|item| item.value.name != checkpoint);
        }
    }

    /// Events of the run up to `sequence` are stored.
    pub fn ack_events(&mut self, id: &RunId, sequence: u64) {
        if let Some(run) = self.find(id) {
            run.events.retain(|item| item.value.sequence > sequence);
        }
    }

    /// The run's end is stored: it is forgotten.
    pub fn ack_finished(&mut self, id: &RunId) {
        self.runs.retain(|run| run.id != *id || run.finished.is_none());
    }

    fn find(&mut self, id: &RunId) -> Option<&mut Reports> {
        self.runs.iter_mut().find(|run| run.id == *id)
    }

    fn of_job(&mut self, job: &str) -> impl Iterator<Item = &mut Reports> {
        self.runs.iter_mut().filter(move |run| run.id.job == job)
    }
}

impl Reports {
    fn next(&mut self, now: Instant) -> Option<Message> {
        if let Some(ready) = unsent(&mut self.ready) {
            return Some(Message::Ready(ready));
        }
        if let Some(event) = self.events.iter_mut().find(|item| !item.sent) {
            event.sent = true;
            return Some(Message::ReportEvent(event.value.clone()));
        }
        if let Some(points) = self.next_points(now) {
            return Some(points);
        }
        let (job, fence) = (self.id.job.clone(), Some(self.id.fence.clone()));
        if let Some(checkpoint) = self.checkpoints.iter_mut().find(|item| !item.sent) {
            checkpoint.sent = true;
            let checkpoint = Some(checkpoint.value.clone());
            return Some(Message::CheckpointWritten(pb::CheckpointWritten { job, fence, checkpoint }));
        }
        unsent(&mut self.finished).map(Message::Finished)
    }

    fn next_points(&mut self, now: Instant) -> Option<Message> {
        // The last chance to send them is before the end.
        let hold = if self.finished.is_some() { Duration::ZERO } else { self.hold };
        let due = |(at, item): &(Instant, Item<_>)| !item.sent && now.saturating_duration_since(*at) >= hold;
        if !self.points.values().any(due) {
            return None;
        }
        let unsent = self.points.values_mut().filter(|(_, item)| !item.sent).take(POINTS_AT_ONCE);
        let points = unsent.map(|(_, item)| {
            item.sent = true;
            item.value.clone()
        });
        let (job, fence, points) = (self.id.job.clone(), Some(self.id.fence.clone()), points.collect());
        Some(Message::Progress(pb::Progress { job, fence, points }))
    }
}

fn unsent<T: Clone>(item: &mut Option<Item<T>>) -> Option<T> {
    let item = item.as_mut().filter(|item| !item.sent)?;
    item.sent = true;
    Some(item.value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(attempt: u32) -> RunId {
        let fence = pb::Fence { attempt, generation: 1, generation_id: "00".into() };
        RunId { job: "jobs/a".into(), fence }
    }

    fn drain(outbox: &mut Outbox) -> Vec<Message> {
        std::iter::from_fn(|| outbox.next(Instant::now())).collect()
    }

    fn full() -> Outbox {
        let mut outbox = Outbox::default();
        outbox.open(&id(1), Duration::ZERO);
        outbox.finished(&id(1), pb::finished::Outcome::Stopped(pb::Stopped {}));
        for step in 1..=3 {
            outbox.point(&id(1), pb::MetricPoint { step, ..Default::default() }, Instant::now());
        }
        outbox.event(&id(1), "evaluated", "loss 4.0");
        outbox.checkpoint(&id(1), pb::Checkpoint { name: "c".into(), ..Default::default() });
        outbox
    }

    #[test]
    fn the_end_comes_last_and_all_is_repeated_until_acknowledged() {
        let mut outbox = full();
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
        outbox.ack_points("jobs/a", 2);
        outbox.ack_events(&id(1), 1);
        outbox.ack_checkpoint("jobs/a", "c");
        match drain(&mut outbox).as_slice() {
            [Message::Progress(progress), Message::Finished(_)] => assert_eq!(progress.points[0].step, 3),
            other => panic!("{other:?}"),
        }
        outbox.ack_finished(&id(2));
        assert_eq!(outbox.ended().count(), 1);
        outbox.ack_finished(&id(1));
        assert!(outbox.is_empty());
    }

    #[test]
    fn points_wait_for_their_hold() {
        let mut outbox = Outbox::default();
        outbox.open(&id(1), Duration::from_secs(3600));
        outbox.point(&id(1), pb::MetricPoint { step: 1, ..Default::default() }, Instant::now());
        assert!(drain(&mut outbox).is_empty());
        outbox.finished(&id(1), pb::finished::Outcome::Stopped(pb::Stopped {}));
        assert_eq!(drain(&mut outbox).len(), 2);
    }

    #[test]
    fn it_is_bounded() {
        let mut outbox = Outbox::default();
        for attempt in 0..100 {
            outbox.open(&id(attempt), Duration::ZERO);
        }
        assert_eq!(outbox.runs.len(), RUNS);
        for _ in 0..2 * EVENTS {
            outbox.event(&id(99), "k", "m");
        }
        let first = outbox.runs[RUNS - 1].events.front().map(|item| item.value.sequence);
        assert_eq!(first, Some(EVENTS as u64 + 1));
    }
}
