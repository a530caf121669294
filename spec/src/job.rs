//! A job in its typed, valid form: a [`Job`] that exists can be trained, as far as its fields alone can tell.

mod check;
mod defaults;
mod yaml;

use std::fmt;

use lorafleet_proto::v1 as pb;

pub use defaults::{Defaults, fill_defaults};
pub use yaml::parse_yaml;
pub(crate) use yaml::{covers, read_lenient};

use crate::targets::TargetRule;

/// One thing wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct FieldError {
    /// The field's path as in the job file: `adapter.rank`. Empty: the file as a whole.
    pub path: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl FieldError {
    /// An error at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// One fine-tuning job, valid by construction: see [`Job::try_from`].
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// What people call it.
    pub name: String,
    /// The frozen pretrained model.
    pub base: Source,
    /// What is trained.
    pub task: Task,
    /// Examples to train on.
    pub train_data: Source,
    /// Examples to evaluate on.
    pub eval_data: Option<Source>,
    /// The trained low-rank weights.
    pub adapter: AdapterSpec,
    /// Length, batch, optimizer.
    pub train: TrainSpec,
    /// Evaluation during the job.
    pub eval: EvalSpec,
    /// How often the whole state is written.
    pub checkpoint: CheckpointSpec,
    /// How many workers it may use.
    pub workers: WorkersSpec,
}

/// A base or a data set: where its user found it, and its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What the user wrote.
    pub source: String,
    /// Lower-case hex sha256; `None` before the upload.
    pub sha256: Option<String>,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Next-token prediction.
    CausalLm,
}

/// The adapter; names and meanings are PEFT's.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSpec {
    /// The LoRA rank r, at least 1.
    pub rank: u32,
    /// The LoRA alpha, finite and above 0.
    pub alpha: f64,
    /// Which linear layers get an adapter.
    pub targets: TargetRule,
    /// Which of them get none after all.
    pub exclude: Option<TargetRule>,
    /// Transformer layers that get adapters; empty: all.
    pub layers: Vec<u32>,
    /// (pattern, rank), the first that matches counts.
    pub rank_pattern: Vec<(String, u32)>,
    /// (pattern, alpha), the first that matches counts.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Scale by alpha / sqrt(rank) instead of alpha / rank (arXiv:2312.03732).
    pub rslora: bool,
}

/// How the job trains.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainSpec {
    /// How long.
    pub length: Length,
    /// Examples in one step, over all workers.
    pub global_batch: u32,
    /// Micro-batches that a step is cut into, from 1 to `global_batch`.
    pub micro_batches: u32,
    /// Tokens at most in a micro-batch, at least `max_length`.
    pub micro_tokens: Option<u32>,
    /// Tokens at most in an example, at least 2.
    pub max_length: u32,
    /// Peak learning rate.
    pub lr: f64,
    /// Course of the learning rate after the warm-up.
    pub schedule: Schedule,
    /// Warm-up: below 1 a fraction of the steps, from 1 on a number of steps. See [`TrainSpec::warmup_steps`].
    pub warmup: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global L2 norm of the gradient; 0: no clipping.
    pub clip: f64,
    /// AdamW's first moment decay, in [0, 1).
    pub beta1: f64,
    /// AdamW's second moment decay, in [0, 1).
    pub beta2: f64,
    /// AdamW's epsilon, above 0.
    pub eps: f64,
    /// Seed of every draw.
    pub seed: u64,
    /// Arithmetic of the base and activations.
    pub precision: Precision,
    /// How gradients are summed.
    pub reduce: Reduce,
}

/// How long a job trains.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// Optimizer steps, at least 1.
    Steps(u64),
    /// Passes over the training data, above 0.
    Epochs(f64),
}

/// Course of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// Stays at the peak.
    Constant,
    /// Falls to 0 in a straight line.
    Linear,
    /// Falls to 0 along half a cosine.
    Cosine,
}

/// Arithmetic of the base and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floating point.
    F32,
}

/// How gradients are summed between micro-batches and workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce {
    /// 64-bit fixed-point integers.
    Exact,
    /// 32-bit floating point.
    F32,
}

impl Reduce {
    /// Bytes of one number in the reduced buffer.
    pub fn bytes(self) -> u64 {
        match self {
            Reduce::Exact => 8,
            Reduce::F32 => 4,
        }
    }
}

/// Evaluation during the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvalSpec {
    /// Also after every so many steps; 0: only before and after.
    pub every: u64,
    /// Prompts that are answered before and after.
    pub prompts: Vec<String>,
    /// Tokens of one answer at most.
    pub max_new_tokens: u32,
}

/// How often the whole state is written to object storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointSpec {
    /// After every so many steps; 0: only at the end.
    pub every: u64,
    /// How many of the latest stay, at least 1.
    pub keep: u32,
}

/// How many workers the job may use at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkersSpec {
    /// It starts with at least this many, or waits.
    pub min: u32,
    /// It never uses more.
    pub max: u32,
}

impl TrainSpec {
    /// Steps of the whole job over a data set of `examples`: at least 1.
    pub fn total_steps(&self, examples: u64) -> u64 {
        match self.length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => {
                let steps = epochs * examples as f64 / f64::from(self.global_batch);
                // 1.1 × 10 / 11 is 1.0000000000000002 in floating point; that is one step, not two.
                ((steps - 1e-9).ceil() as u64).max(1)
            }
        }
    }

    /// Steps of the warm-up in a job of `total_steps`: a fraction is rounded up, as transformers does.
    pub fn warmup_steps(&self, total_steps: u64) -> u64 {
        if self.warmup < 1.0 { (total_steps as f64 * self.warmup).ceil() as u64 } else { self.warmup as u64 }
    }
}

impl TryFrom<&pb::JobSpec> for Job {
    type Error = Vec<FieldError>;

    /// Checks every field and gives every error. Call [`fill_defaults`] first on what a client sent.
    fn try_from(spec: &pb::JobSpec) -> Result<Self, Vec<FieldError>> {
        check::job(spec)
    }
}

impl Job {
    /// What keeps the job from being stored: a base or data set without its content's digest. Paths as in the job file.
    pub fn missing_digests(&self) -> Vec<FieldError> {
        let sources = [
            ("base", Some(&self.base)),
            ("data.train", Some(&self.train_data)),
            ("data.eval", self.eval_data.as_ref()),
        ];
        sources
            .into_iter()
            .filter_map(|(path, source)| source.filter(|source| source.sha256.is_none()).map(|_| path))
            .map(|path| {
                FieldError::new(
                    format!("{path}.sha256"),
                    "is empty: upload the content first and name it by its sha256",
                )
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
