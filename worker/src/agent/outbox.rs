//! What the coordinator has not acknowledged yet: kept, bounded, and sent again on every new stream.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use lorafleet_proto::v1 as pb;
use lorafleet_proto::v1::worker_message::Message;
use tracing::warn;

use crate::run::Backlog;

/// Members other than index 0 keep what the gang has once for this long, and then send what index 0 did not get
/// acknowledged: so nothing is lost with one member.
const HOLD: Duration = Duration::from_secs(5);
/// Points of one run that are kept: a day at one step a second, ten minutes at 7 ms a step.
const POINTS: usize = 86_400;
/// Points in one message.
const POINTS_AT_ONCE: usize = 500;
/// Events of one run that are kept.
const EVENTS: usize = 5_000;
/// Checkpoints of one run that are kept.
const CHECKPOINTS: usize = 1_000;
/// Runs whose reports are kept.
const RUNS: usize = 32;

/// One place in one attempt, on this worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunId {
    /// `jobs/{id}`.
    pub job: String,
    /// Which try at running the job.
    pub attempt: u32,
    /// The seat in it.
    pub place: u32,
}

impl RunId {
    /// From the fields that messages about a place have.
    pub fn new(job: &str, fence: Option<&pb::Fence>, place: u32) -> Self {
        let attempt = fence.map_or(0, |fence| fence.attempt);
        Self { job: job.to_owned(), attempt, place }
    }
}

/// The reports of all runs whose end is not acknowledged.
#[derive(Default)]
pub struct Outbox {
    runs: Vec<Reports>,
}

/// A report, whether it went out on the present stream, and when it was made.
struct Item<T> {
    value: T,
    sent: bool,
    at: Instant,
}

impl<T: Clone> Item<T> {
    fn new(value: T, at: Instant) -> Self {
        Self { value, sent: false, at }
    }

    /// Not sent, and not to be left to index 0 any longer.
    fn is_due(&self, hold: Duration, now: Instant) -> bool {
        !self.sent && now.saturating_duration_since(self.at) >= hold
    }

    fn send(&mut self) -> T {
        self.sent = true;
        self.value.clone()
    }
}

struct Reports {
    id: RunId,
    /// Goes into everything that is sent: of the generation that the member is in.
    fence: pb::Fence,
    /// Its index there.
    index: u32,
    /// It has left that generation, so what the gang reports waits for the next fence.
    paused: bool,
    ready: Option<Item<pb::Ready>>,
    parted: Option<Item<pb::Parted>>,
    points: BTreeMap<u64, Item<pb::MetricPoint>>,
    events: VecDeque<Item<Event>>,
    own_events: u64,
    checkpoints: VecDeque<Item<pb::Checkpoint>>,
    finished: Option<Item<pb::finished::Outcome>>,
}

#[derive(Clone)]
struct Event {
    key: String,
    kind: String,
    message: String,
    /// Every member reports it.
    of_gang: bool,
}

impl Outbox {
    /// A new run begins to report; `fence` is the assignment's.
    pub fn open(&mut self, id: &RunId, fence: pb::Fence) {
        if self.holds(id) {
            return;
        }
        if self.runs.len() == RUNS {
            // Every one of them has ended, or it would be the newest.
            let oldest = self.runs.remove(0);
            warn!(job = oldest.id.job, "gave up reporting an old run: the coordinator never acknowledged it");
        }
        self.runs.push(Reports {
            id: id.clone(),
            fence,
            index: 0,
            paused: false,
            ready: None,
            parted: None,
            points: BTreeMap::new(),
            events: VecDeque::new(),
            own_events: 0,
            checkpoints: VecDeque::new(),
            finished: None,
        });
    }

    /// Base and data are loaded.
    pub fn ready(&mut self, id: &RunId, ready: pb::Ready, now: Instant) {
        if let Some(run) = self.find(id) {
            run.ready = Some(Item::new(ready, now));
        }
    }

    /// The coordinator opens a generation: it knows that the member is ready, or has parted from an earlier one.
    pub fn opened(&mut self, id: &RunId, generation: u32) {
        if let Some(run) = self.find(id) {
            run.ready = None;
            run.parted.take_if(|parted| generation_of(&parted.value) < generation);
        }
    }

    /// The member enters a generation: what is not acknowledged goes out again, under its fence.
    pub fn begun(&mut self, id: &RunId, fence: &pb::Fence, index: u32) {
        self.opened(id, fence.generation);
        if let Some(run) = self.find(id) {
            (run.fence, run.index, run.paused) = (fence.clone(), index, false);
            run.resend();
        }
    }

    /// The member has left its generation. Only the latest word on it counts.
    pub fn parted(&mut self, id: &RunId, parted: pb::Parted, now: Instant) {
        if let Some(run) = self.find(id) {
            run.paused = true;
            run.parted = Some(Item::new(parted, now));
        }
    }

    /// A step is finished.
    pub fn point(&mut self, id: &RunId, point: pb::MetricPoint, now: Instant) {
        if let Some(run) = self.find(id) {
            run.points.insert(point.step, Item::new(point, now));
            dropped(run.points.len() > POINTS && run.points.pop_first().is_some());
        }
    }

    /// Something of the gang for the job's history; nothing when one of that key waits already.
    pub fn event(&mut self, id: &RunId, key: &str, kind: &str, message: &str, now: Instant) {
        if let Some(run) = self.find(id) {
            run.add_event(key.to_owned(), kind, message, true, now);
        }
    }

    /// Something of this member alone for the job's history.
    pub fn own_event(&mut self, id: &RunId, kind: &str, message: &str, now: Instant) {
        if let Some(run) = self.find(id) {
            run.own_events += 1;
            let key = format!("{}/{}", id.place, run.own_events);
            run.add_event(key, kind, message, false, now);
        }
    }

    /// A checkpoint is whole in the store.
    pub fn checkpoint(&mut self, id: &RunId, checkpoint: pb::Checkpoint, now: Instant) {
        if let Some(run) = self.find(id) {
            run.checkpoints.push_back(Item::new(checkpoint, now));
            dropped(run.checkpoints.len() > CHECKPOINTS && run.checkpoints.pop_front().is_some());
        }
    }

    /// The run is over.
    pub fn finished(&mut self, id: &RunId, outcome: pb::finished::Outcome, now: Instant) {
        if let Some(run) = self.find(id) {
            (run.ready, run.parted, run.paused) = (None, None, false);
            run.finished = Some(Item::new(outcome, now));
        }
    }

    /// What of the gang's reports is not acknowledged.
    pub fn unacknowledged(&mut self, id: &RunId) -> Backlog {
        let Some(run) = self.find(id) else { return Backlog::default() };
        let events = run.events.iter().filter(|event| event.value.of_gang);
        Backlog {
            points: run.points.values().map(|point| point.value.clone()).collect(),
            events: events.map(|event| event.value.clone().report(&run.id.job, &run.fence)).collect(),
        }
    }

    /// Keeps what another member had not acknowledged; nothing twice.
    pub fn take_over(&mut self, id: &RunId, backlog: Backlog, now: Instant) {
        let Some(run) = self.find(id) else { return };
        for point in backlog.points {
            run.points.entry(point.step).or_insert_with(|| Item::new(point, now));
        }
        while run.points.len() > POINTS {
            dropped(run.points.pop_first().is_some());
        }
        for event in backlog.events {
            run.add_event(event.key, &event.kind, &event.message, true, now);
        }
    }

    /// Whether the run has reports here, or its end.
    pub fn holds(&self, id: &RunId) -> bool {
        self.runs.iter().any(|run| run.id == *id)
    }

    /// Runs whose end is not acknowledged, with their last fence.
    pub fn ended(&self) -> impl Iterator<Item = (&RunId, &pb::Fence)> {
        self.runs.iter().filter(|run| run.finished.is_some()).map(|run| (&run.id, &run.fence))
    }

    /// Everything is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Everything is to be sent again: the stream is new, or acknowledgements are overdue.
    pub fn resend(&mut self) {
        self.runs.iter_mut().for_each(Reports::resend);
    }

    /// The same for what one run says of its own state.
    pub fn resend_run(&mut self, id: &RunId) {
        if let Some(run) = self.find(id) {
            run.resend_state();
        }
    }

    /// The next message to send, now marked as sent. What others wait for goes first; a run's end comes after all its
    /// other reports.
    pub fn next(&mut self, now: Instant) -> Option<Message> {
        let urgent = self.runs.iter_mut().find_map(Reports::next_urgent);
        urgent.or_else(|| self.runs.iter_mut().find_map(|run| run.next(now)))
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

    /// Events of the attempt are stored.
    pub fn ack_events(&mut self, job: &str, attempt: u32, keys: &[String]) {
        for run in self.of_job(job).filter(|run| run.id.attempt == attempt) {
            run.events.retain(|item| !keys.contains(&item.value.key));
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

impl Event {
    fn report(self, job: &str, fence: &pb::Fence) -> pb::ReportEvent {
        let Self { key, kind, message, .. } = self;
        pb::ReportEvent { job: job.to_owned(), fence: Some(fence.clone()), kind, message, key }
    }
}

impl Reports {
    fn add_event(&mut self, key: String, kind: &str, message: &str, of_gang: bool, now: Instant) {
        if self.events.iter().any(|event| event.value.key == key) {
            return;
        }
        let event = Event { key, kind: kind.to_owned(), message: message.to_owned(), of_gang };
        self.events.push_back(Item::new(event, now));
        dropped(self.events.len() > EVENTS && self.events.pop_front().is_some());
    }

    fn resend_state(&mut self) {
        self.ready.iter_mut().for_each(|item| item.sent = false);
        self.parted.iter_mut().for_each(|item| item.sent = false);
        self.finished.iter_mut().for_each(|item| item.sent = false);
    }

    fn resend(&mut self) {
        self.resend_state();
        self.points.values_mut().for_each(|item| item.sent = false);
        self.events.iter_mut().for_each(|item| item.sent = false);
        self.checkpoints.iter_mut().for_each(|item| item.sent = false);
    }

    /// What the gang has once is index 0's to send; the last chance for the others is before the end.
    fn hold(&self) -> Duration {
        if self.index == 0 || self.finished.is_some() { Duration::ZERO } else { HOLD }
    }

    fn next_urgent(&mut self) -> Option<Message> {
        if let Some(ready) = self.ready.as_mut().filter(|item| !item.sent) {
            return Some(Message::Ready(ready.send()));
        }
        let parted = self.parted.as_mut().filter(|item| !item.sent)?;
        Some(Message::Parted(parted.send()))
    }

    fn next(&mut self, now: Instant) -> Option<Message> {
        if self.paused {
            return None;
        }
        let (job, fence, place) = (self.id.job.clone(), self.fence.clone(), self.id.place);
        let hold = self.hold();
        let due = |event: &&mut Item<Event>| {
            event.is_due(if event.value.of_gang { hold } else { Duration::ZERO }, now)
        };
        if let Some(event) = self.events.iter_mut().find(due) {
            return Some(Message::ReportEvent(event.send().report(&job, &fence)));
        }
        let fence = Some(fence);
        if self.points.values().any(|point| point.is_due(hold, now)) {
            let unsent = self.points.values_mut().filter(|point| !point.sent).take(POINTS_AT_ONCE);
            let points = unsent.map(Item::send).collect();
            return Some(Message::Progress(pb::Progress { job, fence, points }));
        }
        if let Some(checkpoint) = self.checkpoints.iter_mut().find(|item| !item.sent) {
            let checkpoint = Some(checkpoint.send());
            return Some(Message::CheckpointWritten(pb::CheckpointWritten { job, fence, checkpoint }));
        }
        let finished = self.finished.as_mut().filter(|item| !item.sent)?;
        let outcome = Some(finished.send());
        Some(Message::Finished(pb::Finished { job, fence, outcome, place }))
    }
}

fn generation_of(parted: &pb::Parted) -> u32 {
    parted.fence.as_ref().map_or(0, |fence| fence.generation)
}

/// Counts a report that gave way to newer ones.
fn dropped(dropped: bool) {
    if dropped {
        metrics::counter!(crate::telemetry::REPORTS_DROPPED).increment(1);
    }
}

#[cfg(test)]
mod tests;
