//! The coordinator's Prometheus metrics: names, help texts, and one function for each thing that is counted.

use std::time::Duration;

use lorafleet_telemetry::Metric;
use metrics::{counter, gauge, histogram};

use crate::job::Transition;

const JOBS: &str = "lorafleet_jobs";
const QUEUE_WAIT: &str = "lorafleet_queue_wait_seconds";
const TRANSITIONS: &str = "lorafleet_job_transitions_total";
const LEASES_ENDED: &str = "lorafleet_lease_expirations_total";
const STALE_WRITES: &str = "lorafleet_stale_writes_total";
const STEPS: &str = "lorafleet_steps_total";
const TOKENS: &str = "lorafleet_tokens_total";
const WORKERS: &str = "lorafleet_connected_workers";
const LEADER: &str = "lorafleet_scheduler_leader";
const DECISION: &str = "lorafleet_scheduler_decision_seconds";
const REQUESTS: &str = "lorafleet_grpc_requests_total";
const REQUEST_SECONDS: &str = "lorafleet_grpc_request_seconds";

/// Every metric, with its help text.
pub const METRICS: &[Metric] = &[
    Metric::gauge(JOBS, "Jobs by state, of those that have not ended.").by(&["state"]),
    Metric::histogram(QUEUE_WAIT, "Time from submission to the first attempt."),
    Metric::counter(TRANSITIONS, "Changes of jobs' states.").by(&["from", "to"]),
    Metric::counter(LEASES_ENDED, "Leases of workers that ended because they fell silent."),
    Metric::counter(STALE_WRITES, "Writes of workers that were refused because their fence was stale.")
        .by(&["kind"]),
    Metric::counter(STEPS, "Finished steps that were reported, over all jobs."),
    Metric::counter(TOKENS, "Tokens in reported steps, over all jobs."),
    Metric::gauge(WORKERS, "Workers whose stream this coordinator holds."),
    Metric::gauge(LEADER, "1 where this coordinator schedules."),
    Metric::histogram(DECISION, "Time of one scheduling decision, its database calls included."),
    Metric::counter(REQUESTS, "gRPC calls, by method and by the status that they were answered with.")
        .by(&["method", "code"]),
    Metric::histogram(REQUEST_SECONDS, "Time of a gRPC call until its answer begins.").by(&["method"]),
];

/// Jobs that wait and jobs that run.
pub fn depth(queued: u64, running: u64) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge")]
    let set = |state: &'static str, n: u64| gauge!(JOBS, "state" => state).set(n as f64);
    set("queued", queued);
    set("running", running);
}

/// A job's first attempt began after waiting this long.
pub fn queue_wait(wait: Duration) {
    histogram!(QUEUE_WAIT).record(wait);
}

/// A job's state changed.
pub fn transition(change: Transition) {
    let name = |state: crate::job::JobState| state.as_str().to_ascii_lowercase();
    counter!(TRANSITIONS, "from" => name(change.from()), "to" => name(change.to())).increment(1);
}

/// A lease ended.
pub fn lease_ended() {
    counter!(LEASES_ENDED).increment(1);
}

/// A write of a worker was refused.
pub fn stale_write(kind: &'static str) {
    counter!(STALE_WRITES, "kind" => kind).increment(1);
}

/// Steps were reported.
pub fn steps(steps: u64, tokens: u64) {
    counter!(STEPS).increment(steps);
    counter!(TOKENS).increment(tokens);
}

/// Streams held now.
pub fn connected(workers: usize) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge")]
    gauge!(WORKERS).set(workers as f64);
}

/// Whether this coordinator schedules.
pub fn leader(leads: bool) {
    gauge!(LEADER).set(f64::from(u8::from(leads)));
}

/// A scheduling decision was made.
pub fn decision(took: Duration) {
    histogram!(DECISION).record(took);
}

/// A call was answered, or a stream of answers began.
pub fn request(method: String, code: &'static str, took: Duration) {
    counter!(REQUESTS, "method" => method.clone(), "code" => code).increment(1);
    histogram!(REQUEST_SECONDS, "method" => method).record(took);
}
