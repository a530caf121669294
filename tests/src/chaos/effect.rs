//! Whether a fault did anything: it counts only when the history, a log or a counter shows it.

use std::process::Command;

use lorafleet_proto::v1 as pb;

use super::{client::Client, kind::Point, postgres::Session, record::Record, rig::Rig};

/// Events that tell of a gang that changed or ended.
const CHANGES: [&str; 10] = [
    "generation",
    "joined",
    "left",
    "expelled",
    "lost",
    "released",
    "queued",
    "started",
    "straggler",
    "failed",
];
/// What a worker says when its stream to the coordinator has ended.
const STREAM_LOST: [&str; 2] = ["no stream to the coordinator", "not registered yet"];
/// A sum that takes so many times the usual is slow.
const SLOW: f64 = 3.0;

/// Where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gauge {
    /// Nowhere: another fault that lasts kept this one from being done.
    Prevented,
    /// An event of a change names one of these workers.
    Names(Vec<String>),
    /// Any event of a change.
    AnyChange,
    /// The attempt ended, or a checkpoint was read.
    AllLost,
    /// Workers lost their streams.
    StreamsLost,
    /// This coordinator does not answer.
    Silent(usize),
    /// Sums took long.
    SlowSteps,
    /// Bytes or connections between workers and coordinators were held or reset.
    CoordinatorLines,
    /// The same between coordinators and Postgres.
    DatabaseLine,
    /// Coordinators connected anew.
    DatabaseConnections,
    /// Somebody waits for a lock.
    Waiting,
    /// Transactions were committed behind a snapshot that is still held.
    Overtaken,
    /// Requests to the store met the fault.
    Store,
    /// The worker's log shows the wrong hour.
    ClockAt { worker: String, seconds: i64 },
    /// The worker's log says that its disk is full.
    DiskFull(String),
    /// A log says that the point was reached.
    Reached(Point),
}

/// What counters showed at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    streams_lost: u64,
    coordinator_lines: u64,
    database_line: u64,
    database_connections: u64,
    store: u64,
}

/// A fault's effect, as far as it has been looked at.
#[derive(Clone, Debug)]
pub struct Effect {
    pub gauge: Gauge,
    pub before: Reading,
    /// What was seen while the fault lasted, for gauges that only show then.
    pub after: Option<bool>,
    /// How many events the job had before.
    pub events: u64,
    pub at_step: u64,
}

impl Rig {
    /// What all counters show now.
    pub fn reading_places(&self) -> Reading {
        let worker = |name: &str| name.starts_with('w');
        Reading {
            streams_lost: self.lines_with(worker, &STREAM_LOST),
            coordinator_lines: self.coordinators.iter().map(|c| c.proxy.counts().met()).sum(),
            database_line: self.database.counts().met(),
            database_connections: self.database.counts().connections(),
            store: self.store.faults().met(),
        }
    }
}

impl Effect {
    /// Looks at what shows only while the fault lasts.
    pub async fn look(&mut self, rig: &Rig) {
        self.after = match &self.gauge {
            Gauge::Silent(at) => Some(
                Client::new(vec![rig.coordinators[*at].address]).job("jobs/none").await.is_err_and(|error| {
                    error.downcast_ref::<tonic::Status>().is_none_or(|s| {
                        s.code() != tonic::Code::NotFound && s.code() != tonic::Code::InvalidArgument
                    })
                }),
            ),
            Gauge::Waiting => Some(counts(rig, "select count(*) from pg_locks where not granted")),
            Gauge::Overtaken => Some(counts(
                rig,
                "select coalesce(max(age(backend_xmin)), 0) from pg_stat_activity where state = 'idle in transaction'",
            )),
            _ => None,
        };
    }

    /// Whether it did anything.
    pub fn is_there(&self, rig: &Rig, record: &Record) -> bool {
        let now = rig.reading_places();
        let log_has = |name: &str, patterns: &[&str]| rig.lines_with(|n| n == name, patterns) > 0;
        match &self.gauge {
            Gauge::Prevented => false,
            Gauge::Names(names) => self.changes(record).any(|event| names.iter().any(|n| names_it(event, n))),
            Gauge::AnyChange => self.changes(record).next().is_some(),
            Gauge::AllLost => self
                .changes(record)
                .any(|event| matches!(event.kind.as_str(), "lost" | "queued" | "generation")),
            Gauge::StreamsLost => now.streams_lost > self.before.streams_lost,
            Gauge::Silent(_) | Gauge::Waiting | Gauge::Overtaken => self.after == Some(true),
            Gauge::SlowSteps => slow_sum(&record.points, self.at_step),
            Gauge::CoordinatorLines => now.coordinator_lines > self.before.coordinator_lines,
            Gauge::DatabaseLine => now.database_line > self.before.database_line,
            Gauge::DatabaseConnections => now.database_connections > self.before.database_connections,
            Gauge::Store => now.store > self.before.store,
            Gauge::ClockAt { worker, seconds } => {
                hour(*seconds).is_some_and(|hour| log_has(worker, &[&hour]))
            }
            Gauge::DiskFull(worker) => log_has(worker, &["No space left", "StorageFull", "os error 28"]),
            Gauge::Reached(point) => {
                rig.lines_with(|name| name.starts_with('w'), &[&format!("failpoint {} at", point.name())]) > 0
            }
        }
    }

    fn changes<'a>(&self, record: &'a Record) -> impl Iterator<Item = &'a pb::JobEvent> {
        let events = self.events;
        record.events.iter().filter(move |e| e.number > events && CHANGES.contains(&e.kind.as_str()))
    }
}

/// Whether Postgres answers with more than zero.
fn counts(rig: &Rig, query: &str) -> bool {
    let number = Session::open(&rig.postgres.socket()).and_then(|mut session| session.number(query));
    number.is_ok_and(|number| number > 0)
}

/// Whether the event's message has the worker's name as a word.
fn names_it(event: &pb::JobEvent, name: &str) -> bool {
    event.message.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == name)
}

/// Whether a sum after the step took long.
fn slow_sum(points: &[pb::MetricPoint], after: u64) -> bool {
    let mut before: Vec<f64> = points.iter().filter(|p| p.step > 0).map(|p| p.reduce_seconds).collect();
    before.sort_by(f64::total_cmp);
    let Some(median) = before.get(before.len() / 2) else { return false };
    points.iter().any(|point| point.step > after && point.reduce_seconds > SLOW * median)
}

/// A log line's time up to the hour.
fn hour(seconds: i64) -> Option<String> {
    let output =
        Command::new("date").args(["-u", "-d", &format!("@{seconds}"), "+%Y-%m-%dT%H:"]).output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned()).filter(|hour| !hour.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words() {
        let event =
            pb::JobEvent { message: "generation 2: w1, w12 (w3 is gone)".into(), ..Default::default() };
        assert!(names_it(&event, "w3") && names_it(&event, "w12") && !names_it(&event, "w2"));
    }

    #[test]
    fn a_slow_sum_stands_out() {
        let point = |step, reduce_seconds| pb::MetricPoint { step, reduce_seconds, ..Default::default() };
        let points = [point(1, 0.01), point(2, 0.01), point(3, 0.02), point(4, 0.2)];
        assert!(slow_sum(&points, 2) && !slow_sum(&points, 4) && !slow_sum(&points[..3], 1));
    }

    #[test]
    fn an_hour_is_as_in_logs() {
        assert_eq!(hour(0).as_deref(), Some("1970-01-01T00:"));
    }
}
