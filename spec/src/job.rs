//! A job in its typed, valid form: a [`Job`] that exists can be trained, as far as its fields alone can tell.

mod check;
mod defaults;
pub mod submission;
mod yaml;

use std::{collections::BTreeMap, fmt};

use chrono::{DateTime, Utc};
use lorafleet_proto::v1 as pb;

pub use check::{MAX_AFTER, check_label};
pub use defaults::{Defaults, fill_defaults};
pub use yaml::parse_yaml;
pub(crate) use yaml::{covers, parse_root, read_fields, read_lenient};

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
    /// What is done.
    pub action: Action,
    /// What is trained.
    pub task: Task,
    /// Examples, and how they are read.
    pub data: DataSpec,
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
    /// The higher goes first.
    pub priority: i32,
    /// When and where it may run.
    pub queue: QueueSpec,
}

/// A base or a data set: where its user found it, and its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What the user wrote.
    pub source: String,
    /// Lower-case hex sha256; `None` before the upload.
    pub sha256: Option<String>,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// An adapter is trained.
    Train,
    /// An adapter is evaluated.
    Evaluate,
    /// An adapter is merged into the base.
    Merge,
}

impl Action {
    /// Its name in job files.
    pub fn name(self) -> &'static str {
        match self {
            Action::Train => "train",
            Action::Evaluate => "evaluate",
            Action::Merge => "merge",
        }
    }
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Next-token prediction.
    CausalLm,
    /// One label, or one number, for a text or a pair of texts.
    Classification,
}

/// The data sets of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataSpec {
    /// Files of examples to train on, at least one where it is trained; together they are one data set.
    pub train: Vec<Source>,
    /// Files of examples to evaluate on; empty: no evaluation.
    pub eval: Vec<Source>,
    /// The data's own name of a field, by lorafleet's.
    pub columns: BTreeMap<String, String>,
    /// Classification: the labels in the order of their numbers; empty: those of the training data, sorted.
    pub labels: Vec<String>,
    /// Raw text: tokens that a chunk repeats of the one before it; below `max_length`.
    pub overlap: u32,
    /// Which tokens bear a label.
    pub loss_on: LossOn,
}

/// Which tokens bear a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossOn {
    /// What the model is to answer.
    Completions,
    /// Every token.
    All,
}

/// The adapter; names and meanings are PEFT's.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSpec {
    /// How the trained weights enter a layer.
    pub method: Method,
    /// How the low-rank weights begin.
    pub init: Init,
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
    /// Probability that an input of an adapter is dropped, in [0, 1).
    pub dropout: f64,
    /// Names of the module lists in which `layers` are counted; empty: any.
    pub layers_pattern: Vec<String>,
    /// Modules that are trained whole, by suffix of their names.
    pub modules_to_save: Vec<String>,
    /// An adapter whose weights are the start; always there in an evaluation and a merge, which are about it.
    pub start: Option<Start>,
}

/// An adapter that is there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// A PEFT folder.
    Folder(Source),
    /// The final checkpoint of a job: `jobs/{id}`, or `jobs/` and a name within one submission.
    Job(String),
}

/// How the trained weights enter a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// LoRA (arXiv:2106.09685).
    Lora,
    /// Weight-decomposed LoRA (arXiv:2402.09353).
    Dora,
    /// Every weight of the base is trained.
    Full,
}

/// How the low-rank weights begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// A Kaiming-uniform, B zero.
    Kaiming,
    /// A Gaussian with deviation 1/rank, B zero.
    Gaussian,
    /// The principal singular vectors of the weight (arXiv:2404.02948).
    Pissa,
    /// Orthonormal factors of the weight (arXiv:2406.01775).
    Olora,
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
    /// Weight decay: decoupled in AdamW and Lion, added to the gradient in SGD.
    pub weight_decay: f64,
    /// Largest global L2 norm of the gradient; 0: no clipping.
    pub clip: f64,
    /// What makes an update of a gradient.
    pub optimizer: OptimizerKind,
    /// SGD's momentum, in [0, 1).
    pub momentum: f64,
    /// Learning rate of B over that of A, above 0 (LoRA+, arXiv:2402.12354).
    pub loraplus_lr_ratio: f64,
    /// WSD's last steps: below 1 a fraction of the steps, from 1 on a number of steps. See [`TrainSpec::decay_steps`].
    pub decay: f64,
    /// Keep only each layer's input for the backward pass.
    pub recompute: bool,
    /// First moment decay of AdamW and Lion, in [0, 1).
    pub beta1: f64,
    /// Second moment decay of AdamW, Lion's momentum decay, in [0, 1).
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
    /// Falls with the square root of the steps.
    InverseSqrt,
    /// Stays at the peak, then falls to 0 (warm-up, stable, decay; arXiv:2404.06395).
    Wsd,
}

/// What makes an update of a gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptimizerKind {
    /// AdamW (arXiv:1711.05101).
    Adamw,
    /// AdamW with moments in 8 bits (arXiv:2110.02861).
    Adamw8bit,
    /// Stochastic gradient descent with momentum.
    Sgd,
    /// Lion (arXiv:2302.06675).
    Lion,
}

/// Arithmetic of the base and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floating point.
    F32,
    /// Products of bfloat16 numbers, summed in 32-bit floating point.
    Bf16,
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
#[derive(Debug, Clone, PartialEq)]
pub struct EvalSpec {
    /// Also after every so many steps; 0: only before and after.
    pub every: u64,
    /// Prompts that are answered before and after.
    pub prompts: Vec<String>,
    /// Tokens of one answer at most.
    pub max_new_tokens: u32,
    /// What tells the better of two evaluations.
    pub metric: Metric,
    /// Stop after so many evaluations without a better one; 0: never.
    pub patience: u32,
    /// How much better an evaluation must be to count as better, at least 0.
    pub min_delta: f64,
}

/// A figure of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Mean loss; lower is better, in all others higher.
    Loss,
    /// Share of right labels.
    Accuracy,
    /// Mean of the labels' F1.
    F1,
    /// Matthews correlation.
    Matthews,
    /// Pearson correlation.
    Pearson,
    /// Spearman correlation.
    Spearman,
}

impl Metric {
    /// All of them.
    pub const ALL: [Metric; 6] =
        [Metric::Loss, Metric::Accuracy, Metric::F1, Metric::Matthews, Metric::Pearson, Metric::Spearman];

    /// Its name in job files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Loss => "loss",
            Metric::Accuracy => "accuracy",
            Metric::F1 => "f1",
            Metric::Matthews => "matthews",
            Metric::Pearson => "pearson",
            Metric::Spearman => "spearman",
        }
    }

    /// Whether a lower figure is better.
    pub fn lower_is_better(self) -> bool {
        self == Metric::Loss
    }
}

/// How often the whole state is written to object storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointSpec {
    /// After every so many steps; 0: only at the end.
    pub every: u64,
    /// How many of the latest stay, at least 1.
    pub keep: u32,
    /// The checkpoint of the best evaluation stays too, and is the result.
    pub best: bool,
    /// Those whose step is a multiple of this stay for ever; 0: none beyond `keep`.
    pub keep_every: u64,
}

/// How many workers the job may use at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkersSpec {
    /// It starts with at least this many, or waits.
    pub min: u32,
    /// It never uses more.
    pub max: u32,
}

/// When and where a job may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSpec {
    /// Labels that its workers must have.
    pub selector: BTreeMap<String, String>,
    /// It does not start before.
    pub not_before: Option<DateTime<Utc>>,
    /// It fails when it has not ended by then; after `not_before`.
    pub deadline: Option<DateTime<Utc>>,
    /// It fails when its attempts together ran longer.
    pub max_run_seconds: Option<u64>,
    /// Jobs that must have succeeded before it starts: `jobs/{id}`, or names within one submission.
    pub after: Vec<String>,
    /// Tries beyond the first after failures that may heal.
    pub retries: u32,
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
        steps_of(self.warmup, total_steps)
    }

    /// Steps of WSD's decay in a job of `total_steps`.
    pub fn decay_steps(&self, total_steps: u64) -> u64 {
        steps_of(self.decay, total_steps)
    }
}

/// Below 1 a fraction of all steps, rounded up; from 1 on a number of steps.
fn steps_of(part: f64, total_steps: u64) -> u64 {
    if part < 1.0 { (total_steps as f64 * part).ceil() as u64 } else { part as u64 }
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
        let data = |path: &'static str, files: &[Source]| -> Vec<(String, bool)> {
            files
                .iter()
                .enumerate()
                .map(|(i, file)| (file_path(path, i, files.len()), file.sha256.is_none()))
                .collect()
        };
        let mut sources = vec![("base".to_owned(), self.base.sha256.is_none())];
        sources.extend(data("data.train", &self.data.train));
        sources.extend(data("data.eval", &self.data.eval));
        if let Some(Start::Folder(start)) = &self.adapter.start {
            sources.push(("adapter.start".to_owned(), start.sha256.is_none()));
        }
        sources
            .into_iter()
            .filter(|(_, missing)| *missing)
            .map(|(path, _)| {
                FieldError::new(
                    format!("{path}.sha256"),
                    "is empty: upload the content first and name it by its sha256",
                )
            })
            .collect()
    }
}

/// The path of one of `of` files of a data set: `data.train`, or `data.train[2]` where there are several.
pub fn file_path(set: &str, index: usize, of: usize) -> String {
    if of == 1 { set.to_owned() } else { format!("{set}[{index}]") }
}

#[cfg(test)]
mod tests;
