//! Parameters, memory, FLOPs and bytes of a job, by arithmetic.

mod cost;
mod memory;

use crate::{
    base::BaseShape,
    data::Summary,
    job::{Job, Method},
    targets::{self, Saved, Target},
};

pub use memory::Memory;

use cost::Trained;

/// What a job costs. Parameters and reduced bytes are exact; FLOPs and memory are estimates, to choose a machine by: the
/// engine counts and measures its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Parameters of the base.
    pub base_parameters: u64,
    /// Parameters that are trained.
    pub trainable_parameters: u64,
    /// Those of them that are tensors of the base, trained whole.
    pub whole_parameters: u64,
    /// Parameters of base and adapter together; full fine-tuning adds none to the base.
    pub total_parameters: u64,
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

/// What the training data is in numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Load {
    examples: u64,
    tokens: u64,
    labelled: u64,
    longest: u64,
}

impl Plan {
    /// Computes the plan of a job on its base and training data. `targets` are those that the job was resolved to.
    pub fn new(job: &Job, shape: &BaseShape, targets: &[Target], data: &Summary) -> Self {
        let load = Load {
            examples: data.examples,
            tokens: data.tokens,
            labelled: data.labelled_tokens,
            longest: data.longest,
        };
        // A job that was resolved has no errors left here.
        let saved = targets::saved(&job.adapter, shape).unwrap_or_default();
        Self::of(job, shape, targets, &saved, load)
    }

    fn of(job: &Job, shape: &BaseShape, targets: &[Target], saved: &Saved, load: Load) -> Self {
        let adapters: u64 = targets.iter().map(Target::parameters).sum();
        let trainable_parameters = adapters + saved.parameters();
        let base_parameters = shape.parameters();
        let per_step = f64::from(job.train.global_batch) / load.examples.max(1) as f64;
        let trained = Trained::new(shape, targets, saved);
        Self {
            base_parameters,
            trainable_parameters,
            whole_parameters: saved.parameters(),
            total_parameters: match job.adapter.method {
                Method::Full => base_parameters,
                Method::Lora | Method::Dora => base_parameters + adapters,
            },
            total_steps: job.train.total_steps(load.examples),
            tokens_per_step: load.tokens as f64 * per_step,
            flops_per_step: cost::flops(shape, &trained, job.train.recompute, load) * per_step,
            reduced_bytes: trainable_parameters * job.train.reduce.bytes(),
            memory: memory::memory(job, shape, &trained, load),
        }
    }

    /// Floating point operations of training on one token, on average; 0 without data.
    pub fn flops_per_token(&self) -> f64 {
        if self.tokens_per_step > 0.0 { self.flops_per_step / self.tokens_per_step } else { 0.0 }
    }

    /// Bytes that each of `world_size` workers sends for one step's all-reduce over a ring: 2(N−1)/N × the buffer.
    pub fn bytes_sent_per_step(&self, world_size: u32) -> u64 {
        let members = u64::from(world_size.max(1));
        (2 * (members - 1) * self.reduced_bytes).div_ceil(members)
    }
}

#[cfg(test)]
mod tests;
