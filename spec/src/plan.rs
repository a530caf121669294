//! Parameters, memory, FLOPs and bytes of a job, by arithmetic.

use crate::{base::BaseShape, data::Summary, job::Job, targets::Target};

/// Tokens whose logits are in memory at once, about.
const LOGITS_CHUNK: u64 = 256;

/// What a job costs. Parameters and reduced bytes are exact; FLOPs and memory are estimates, from above, to choose a
/// machine by: the engine counts and measures its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Parameters of the base.
    pub base_parameters: u64,
    /// Parameters that are trained.
    pub trainable_parameters: u64,
    /// Steps of the whole job.
    pub total_steps: u64,
    /// Tokens of a step, on average.
    pub tokens_per_step: f64,
    /// Floating point operations of a step, a multiply-add being two.
    pub flops_per_step: f64,
    /// Bytes that a step reduces: the gradients in the form in which they are summed.
    pub reduced_bytes: u64,
    /// Memory of one worker.
    pub memory: Memory,
}

/// Memory of one worker, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The base's weights.
    pub base: u64,
    /// Two whole states (weights and two moments), gradients and their sums.
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

impl Plan {
    /// Computes the plan of a job on its base and training data.
    pub fn new(job: &Job, shape: &BaseShape, targets: &[Target], data: &Summary) -> Self {
        let trainable_parameters = targets.iter().map(Target::parameters).sum();
        let per_step = f64::from(job.train.global_batch) / data.examples.max(1) as f64;
        Self {
            base_parameters: shape.parameters(),
            trainable_parameters,
            total_steps: job.train.total_steps(data.examples),
            tokens_per_step: data.tokens as f64 * per_step,
            flops_per_step: flops(shape, trainable_parameters, data) * per_step,
            reduced_bytes: trainable_parameters * job.train.reduce.bytes(),
            memory: memory(job, shape, trainable_parameters, data),
        }
    }

    /// Bytes that each of `world_size` workers sends for one step's all-reduce over a ring: 2(N−1)/N × the buffer.
    pub fn bytes_sent_per_step(&self, world_size: u32) -> u64 {
        let members = u64::from(world_size.max(1));
        (2 * (members - 1) * self.reduced_bytes).div_ceil(members)
    }
}

/// FLOPs of one pass over a data set: 4N + 6P a token, N the frozen weights that it is multiplied by (forward, and
/// backward to the input only), P the adapter's; the head only for tokens with a label; causal attention.
fn flops(shape: &BaseShape, trainable: u64, data: &Summary) -> f64 {
    let frozen: f64 = shape
        .linears
        .iter()
        .filter(|l| l.layer.is_some())
        .map(|l| (l.in_features * l.out_features) as f64)
        .sum();
    let head = (shape.hidden * shape.vocab) as f64;
    let tokens = data.tokens as f64;
    let mean_length = tokens / data.examples.max(1) as f64;
    // Scores and values of (L+1)/2 earlier tokens on average, forward once and backward twice.
    let attention = 6.0 * (mean_length + 1.0) * (shape.layers * shape.queries()) as f64;
    tokens * (4.0 * frozen + 6.0 * trainable as f64 + attention) + 4.0 * head * data.labelled_tokens as f64
}

fn memory(job: &Job, shape: &BaseShape, trainable: u64, data: &Summary) -> Memory {
    const F32: u64 = 4;
    let states = 2 * 3 * F32;
    let sums = F32 + job.train.reduce.bytes();
    let examples = u64::from(job.train.global_batch.div_ceil(job.train.micro_batches.max(1)));
    let tokens = (examples * data.longest).min(job.train.micro_tokens.map_or(u64::MAX, u64::from));
    // The residual stream and its norm twice, q, k, v and the attention's output, gate, up and their product.
    let kept = 4 * shape.hidden + 2 * shape.queries() + 2 * shape.keys() + 3 * shape.mlp;
    let logits = 2 * LOGITS_CHUNK.min(tokens) * shape.vocab as u64;
    Memory {
        base: shape.parameters() * F32,
        adapter: trainable * (states + sums),
        activations: (tokens * (kept * shape.layers) as u64 + logits) * F32,
    }
}
