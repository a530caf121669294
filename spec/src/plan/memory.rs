//! Memory of one worker: the base, what is trained, and what a micro-batch keeps.

use super::{
    Load,
    cost::{Trained, head_outputs},
};
use crate::{
    base::{BaseShape, HeadShape, Placement},
    job::{Init, Job, OptimizerKind, Precision},
};

/// Bytes of a number in 32-bit floating point.
const F32: u64 = 4;
/// Logits that are in memory at once, about; but never fewer tokens than the next.
const LOGITS: u64 = 9 << 20;
const FEWEST_ROWS: u64 = 96;
/// Fewest tokens where the head itself is trained.
const FEWEST_ROWS_OF_TRAINED: u64 = 512;
/// Weights that share one scale in 8-bit moments.
const BLOCK: u64 = 256;

/// Memory of one worker, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The base's weights.
    pub base: u64,
    /// Two whole states (weights and the optimizer's moments), gradients and their sums.
    pub adapter: u64,
    /// What the largest micro-batch keeps between forward and backward, and its logits.
    pub activations: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.base + self.adapter + self.activations
    }
}

pub(super) fn memory(job: &Job, shape: &BaseShape, trained: &Trained<'_>, load: Load) -> Memory {
    Memory {
        base: base(job.train.precision, shape),
        adapter: trained.parameters * states(job),
        activations: activations(job, shape, trained, load),
    }
}

/// Matrices of a bfloat16 base take half.
fn base(precision: Precision, shape: &BaseShape) -> u64 {
    let bytes = |sizes: &[usize]| match precision {
        Precision::Bf16 if sizes.len() > 1 => 2,
        _ => F32,
    };
    let tensors = shape.parameter_shapes();
    tensors.iter().map(|(_, sizes)| sizes.iter().map(|n| *n as u64).product::<u64>() * bytes(sizes)).sum()
}

/// Bytes for each trained parameter.
fn states(job: &Job) -> u64 {
    let moments = match job.train.optimizer {
        OptimizerKind::Adamw => 2 * F32,
        OptimizerKind::Adamw8bit => 2 + (2 * F32).div_ceil(BLOCK),
        OptimizerKind::Sgd if job.train.momentum == 0.0 => 0,
        OptimizerKind::Sgd | OptimizerKind::Lion => F32,
    };
    let start = if matches!(job.adapter.init, Init::Pissa | Init::Olora) { F32 } else { 0 };
    let best = if job.checkpoint.best { F32 } else { 0 };
    2 * (F32 + moments) + start + best + F32 + job.train.reduce.bytes()
}

fn activations(job: &Job, shape: &BaseShape, trained: &Trained<'_>, load: Load) -> u64 {
    let examples = u64::from(job.train.global_batch.div_ceil(job.train.micro_batches.max(1)));
    let tokens = (examples * load.longest).min(job.train.micro_tokens.map_or(u64::MAX, u64::from));
    let one = kept(shape) as u64 + trained.ranks.ceil() as u64;
    let layers = (shape.layers - trained.lowest) as u64;
    // One block is always being worked on: its parts and their gradients.
    let working = one + working(shape) as u64;
    let kept = if job.train.recompute { shape.hidden as u64 * layers } else { one * layers };
    (tokens * (kept + working) + logits(shape, trained, tokens)) * F32
}

/// Numbers that a block keeps of a token: the residual stream before both parts, queries, keys, values, the attention's result
/// and two statistics of each head; gate and up, or what goes through the activation; what norms behind the parts saw.
fn kept(shape: &BaseShape) -> usize {
    let inner = if shape.gated { 2 * shape.mlp } else { shape.mlp };
    let after = if shape.placement == Placement::Before { 0 } else { 2 * shape.hidden };
    let heads = if shape.qk_norm { shape.queries() + shape.keys() } else { 0 };
    2 * shape.hidden + 2 * shape.queries() + 2 * shape.keys() + 2 * shape.heads + inner + after + heads
}

/// Numbers that a block's backward pass needs of a token beside: the gradient of the stream and of a part's input, and the
/// gradients of the MLP's inner layer (or of attention, where that is wider).
fn working(shape: &BaseShape) -> usize {
    let inner = if shape.gated { 3 * shape.mlp } else { 2 * shape.mlp };
    2 * shape.hidden + inner.max(2 * shape.queries() + 2 * shape.keys())
}

/// Logits and their packed form; of a classifier, next to nothing.
fn logits(shape: &BaseShape, trained: &Trained<'_>, tokens: u64) -> u64 {
    let outputs = head_outputs(shape) as u64;
    if !matches!(shape.head, HeadShape::LanguageModel) {
        return outputs * tokens;
    }
    let fewest = if trained.head { FEWEST_ROWS_OF_TRAINED } else { FEWEST_ROWS };
    let rows = (LOGITS / outputs.max(1)).max(fewest);
    2 * rows.min(tokens) * outputs
}
