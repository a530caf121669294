//! The worker's metrics, by name; labels are few and never a job.

use lorafleet_telemetry::Metric;

/// Finished steps.
pub const STEPS: &str = "lorafleet_worker_steps_total";
/// Tokens of the micro-batches that this worker computed.
pub const TOKENS: &str = "lorafleet_worker_tokens_total";
/// Wall time of a step.
pub const STEP_SECONDS: &str = "lorafleet_worker_step_seconds";
/// Wall time of a step's all-reduce.
pub const ALL_REDUCE_SECONDS: &str = "lorafleet_worker_all_reduce_seconds";
/// Payload bytes sent to peers.
pub const ALL_REDUCE_BYTES: &str = "lorafleet_worker_all_reduce_bytes_total";
/// Wall time of writing a checkpoint, beside training.
pub const CHECKPOINT_SECONDS: &str = "lorafleet_worker_checkpoint_seconds";
/// Size of a checkpoint.
pub const CHECKPOINT_BYTES: &str = "lorafleet_worker_checkpoint_bytes";
/// Checkpoints that could not be written.
pub const CHECKPOINTS_MISSED: &str = "lorafleet_worker_checkpoints_missed_total";
/// Runs by how they ended.
pub const RUNS: &str = "lorafleet_worker_runs_total";
/// Reports dropped because the coordinator was away for too long.
pub const REPORTS_DROPPED: &str = "lorafleet_worker_reports_dropped_total";
/// Streams to the coordinator that broke.
pub const DISCONNECTS: &str = "lorafleet_worker_disconnects_total";
/// Members of the gang that compute far slower than its median.
pub const STRAGGLERS: &str = "lorafleet_worker_gang_stragglers";
/// Generations of a gang that broke.
pub const BREAKAGES: &str = "lorafleet_worker_collectives_broken_total";
/// Bases found in memory instead of being loaded.
pub const BASE_HITS: &str = "lorafleet_worker_base_cache_hits_total";

/// All of them, with their kinds and meanings.
pub const METRICS: [Metric; 14] = [
    Metric::counter(STEPS, "Finished steps"),
    Metric::counter(TOKENS, "Tokens of the micro-batches that this worker computed"),
    Metric::histogram(STEP_SECONDS, "Wall time of a step"),
    Metric::histogram(ALL_REDUCE_SECONDS, "Wall time of a step's all-reduce"),
    Metric::counter(ALL_REDUCE_BYTES, "Payload bytes sent to peers"),
    Metric::histogram(CHECKPOINT_SECONDS, "Wall time of writing a checkpoint, beside training"),
    Metric::histogram(CHECKPOINT_BYTES, "Size of a checkpoint"),
    Metric::counter(CHECKPOINTS_MISSED, "Checkpoints that could not be written"),
    Metric::counter(RUNS, "Runs, by how they ended").by(&["outcome"]),
    Metric::counter(REPORTS_DROPPED, "Reports dropped because the coordinator was away for too long"),
    Metric::counter(DISCONNECTS, "Streams to the coordinator that broke"),
    Metric::gauge(STRAGGLERS, "Members of the gang that compute far slower than its median"),
    Metric::counter(BREAKAGES, "Generations of a gang that broke"),
    Metric::counter(BASE_HITS, "Bases found in memory instead of being loaded"),
];
