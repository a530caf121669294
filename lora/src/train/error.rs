//! Why training cannot go on, and what to do about it.

use lorafleet_spec::job::Precision;

use crate::adapter::{AdapterError, CONFIG_FILE};
use crate::model::ModelError;

/// Why training cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The adapter does not fit the base, or a checkpoint does not fit the job.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The model refused a batch.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The checkpoint is of another adapter.
    #[error("the checkpoint's {CONFIG_FILE} describes another adapter than the job: start the job anew")]
    OtherAdapter,
    /// The base was loaded for another job.
    #[error("the base is held in {base:?}, but the job's train.precision is {job:?}: load it for the job")]
    Precision {
        /// Precision of the base.
        base: Precision,
        /// Precision that the job wants.
        job: Precision,
    },
    /// The adapter to start from is another than the job's.
    #[error(
        "the adapter to start from does not fit the job: {0}. Give the job the adapter's own rank, alpha and targets"
    )]
    Start(String),
    /// The loss left the range of numbers.
    #[error(
        "step {step}: the loss is {loss}; training diverged. Lower train.lr, lengthen train.warmup or set train.clip"
    )]
    Loss {
        /// The step that was being computed.
        step: u64,
        /// Sum of the micro-batch's losses.
        loss: f64,
    },
    /// A gradient left the range of numbers.
    #[error(
        "step {step}: the gradient of {parameter} is {value}, out of range (±{limit:e}); training diverged. \
         Lower train.lr, lengthen train.warmup or set train.clip"
    )]
    Gradient {
        /// The step that was being computed.
        step: u64,
        /// Module and matrix.
        parameter: String,
        /// The gradient, summed over the micro-batch's tokens.
        value: f32,
        /// The largest sum that one member may hold.
        limit: f64,
    },
    /// The update would make a weight NaN or infinite.
    #[error("step {step}: the update makes a weight NaN or infinite. Lower train.lr, or raise train.eps")]
    Update {
        /// The step that was being computed.
        step: u64,
    },
    /// None of a step's tokens bears a label.
    #[error(
        "step {step}: none of its {tokens} tokens bears a label. Raise train.max_length (the answers may be cut off) \
         or train.global_batch"
    )]
    NoLabels {
        /// The step that was being computed.
        step: u64,
        /// Tokens of the step over all members.
        tokens: u64,
    },
    /// All steps of the job are done.
    #[error("all {total_steps} steps are done")]
    Done {
        /// Steps of the job.
        total_steps: u64,
    },
}
