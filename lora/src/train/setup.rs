//! From the job's words to the trainer's parts: which optimizer, by which rules, along which course.

use lorafleet_spec::job::{Job, OptimizerKind, Schedule, TrainSpec};

use super::model_file::{self, MODEL_CONFIG_FILE};
use crate::adapter::AdapterError;
use crate::adapter::file::matrices;
use crate::base::Base;
use crate::optim::adamw::{AdamW, Settings};
use crate::optim::adamw_8bit::AdamW8bit;
use crate::optim::lion::Lion;
use crate::optim::rules::Rules;
use crate::optim::schedule::{Course, LearningRate};
use crate::optim::sgd::Sgd;
use crate::optim::{Optimizer, Parameter};
use crate::params::Layout;

/// The job's optimizer over the layout's tensors.
pub(super) fn optimizer(train: &TrainSpec, layout: &Layout) -> Box<dyn Optimizer> {
    let parameters = parameters(train, layout);
    let settings = Settings { beta1: train.beta1, beta2: train.beta2, eps: train.eps };
    match train.optimizer {
        OptimizerKind::Adamw => Box::new(AdamW::new(settings, &parameters)),
        OptimizerKind::Adamw8bit => Box::new(AdamW8bit::new(settings, &parameters)),
        OptimizerKind::Sgd => Box::new(Sgd::new(train.momentum, &parameters)),
        OptimizerKind::Lion => Box::new(Lion::new(train.beta1, train.beta2, &parameters)),
    }
}

/// The trained tensors with their rates, in the order of the flat buffers.
fn parameters(train: &TrainSpec, layout: &Layout) -> Vec<Parameter> {
    let rules =
        Rules { lr: train.lr, weight_decay: train.weight_decay, loraplus_lr_ratio: train.loraplus_lr_ratio };
    let parameter = |matrix: crate::adapter::file::Matrix| {
        let (lr, weight_decay) = rules.of(&matrix.key, matrix.shape.len());
        Parameter { key: matrix.key, shape: matrix.shape, place: matrix.place, lr, weight_decay }
    };
    matrices(layout).into_iter().map(parameter).collect()
}

/// The job's learning rate.
pub(super) fn rate(train: &TrainSpec, total_steps: u64) -> LearningRate {
    let course = match train.schedule {
        Schedule::Constant => Course::Constant,
        Schedule::Linear => Course::Linear,
        Schedule::Cosine => Course::Cosine,
        Schedule::InverseSqrt => Course::InverseSqrt,
        Schedule::Wsd => Course::Wsd { decay_steps: train.decay_steps(total_steps) },
    };
    LearningRate::new(course, train.warmup_steps(total_steps), total_steps)
}

/// The text of a fully trained model's configuration.
///
/// # Errors
/// The base's own cannot be read.
pub(super) fn model_config(base: &Base, job: &Job) -> Result<String, AdapterError> {
    let path = base.dir().join(MODEL_CONFIG_FILE);
    let text = std::fs::read_to_string(&path).map_err(|source| AdapterError::Io { path, source })?;
    model_file::config(&text, base.shape(), &job.data.labels)
}
