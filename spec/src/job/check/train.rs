//! The rules that the fields of the training must keep.

use lorafleet_proto::v1::{self as pb, train_spec};

use super::Check;
use crate::job::{FieldError, Length, OptimizerKind, Precision, Reduce, Schedule, TrainSpec};

/// Steps a job may have.
const MAX_STEPS: u64 = 100_000_000;
/// Examples a step may have.
const MAX_BATCH: u32 = 1 << 20;
/// Tokens an example may have.
const MAX_LENGTH: u32 = 1 << 20;

impl Check {
    pub(super) fn train(&mut self, spec: &pb::TrainSpec) -> Option<TrainSpec> {
        let length = self.length(spec.length);
        self.batch(spec);
        self.positive("train.lr", spec.lr);
        self.not_negative("train.warmup", spec.warmup);
        self.not_negative("train.weight_decay", spec.weight_decay);
        self.not_negative("train.clip", spec.clip);
        for (path, beta) in
            [("train.beta1", spec.beta1), ("train.beta2", spec.beta2), ("train.momentum", spec.momentum)]
        {
            self.rule((0.0..1.0).contains(&beta), path, || {
                format!("is {beta}; it must be 0 or above, and below 1")
            });
        }
        self.positive("train.eps", spec.eps);
        let schedule = match pb::Schedule::try_from(spec.schedule) {
            Ok(pb::Schedule::Constant) => Some(Schedule::Constant),
            Ok(pb::Schedule::Linear) => Some(Schedule::Linear),
            Ok(pb::Schedule::Cosine) => Some(Schedule::Cosine),
            Ok(pb::Schedule::InverseSqrt) => Some(Schedule::InverseSqrt),
            Ok(pb::Schedule::Wsd) => Some(Schedule::Wsd),
            Ok(pb::Schedule::Unspecified) | Err(_) => None,
        };
        let known = "constant, linear, cosine, inverse_sqrt or wsd";
        let schedule = self.choice("train.schedule", schedule, spec.schedule, known);
        let optimizer = match pb::OptimizerKind::try_from(spec.optimizer) {
            Ok(pb::OptimizerKind::Adamw) => Some(OptimizerKind::Adamw),
            Ok(pb::OptimizerKind::Adamw8bit) => Some(OptimizerKind::Adamw8bit),
            Ok(pb::OptimizerKind::Sgd) => Some(OptimizerKind::Sgd),
            Ok(pb::OptimizerKind::Lion) => Some(OptimizerKind::Lion),
            Ok(pb::OptimizerKind::Unspecified) | Err(_) => None,
        };
        let known = "adamw, adamw_8bit, sgd or lion";
        let optimizer = self.choice("train.optimizer", optimizer, spec.optimizer, known);
        self.positive("train.loraplus_lr_ratio", spec.loraplus_lr_ratio);
        self.positive("train.decay", spec.decay);
        let precision = match pb::Precision::try_from(spec.precision) {
            Ok(pb::Precision::F32) => Some(Precision::F32),
            Ok(pb::Precision::Bf16) => Some(Precision::Bf16),
            Ok(pb::Precision::Unspecified) | Err(_) => None,
        };
        let precision = self.choice("train.precision", precision, spec.precision, "f32 or bf16");
        let reduce = match pb::Reduce::try_from(spec.reduce) {
            Ok(pb::Reduce::Exact) => Some(Reduce::Exact),
            Ok(pb::Reduce::F32) => Some(Reduce::F32),
            Ok(pb::Reduce::Unspecified) | Err(_) => None,
        };
        let reduce = self.choice("train.reduce", reduce, spec.reduce, "exact or f32");
        Some(TrainSpec {
            length: length?,
            global_batch: spec.global_batch,
            micro_batches: spec.micro_batches,
            micro_tokens: (spec.micro_tokens > 0).then_some(spec.micro_tokens),
            max_length: spec.max_length,
            lr: spec.lr,
            schedule: schedule?,
            warmup: spec.warmup,
            weight_decay: spec.weight_decay,
            clip: spec.clip,
            optimizer: optimizer?,
            momentum: spec.momentum,
            loraplus_lr_ratio: spec.loraplus_lr_ratio,
            decay: spec.decay,
            recompute: spec.recompute,
            beta1: spec.beta1,
            beta2: spec.beta2,
            eps: spec.eps,
            seed: spec.seed,
            precision: precision?,
            reduce: reduce?,
        })
    }

    fn length(&mut self, length: Option<train_spec::Length>) -> Option<Length> {
        match length {
            Some(train_spec::Length::Steps(steps)) => {
                self.range("train.steps", steps, 1, MAX_STEPS);
                Some(Length::Steps(steps))
            }
            Some(train_spec::Length::Epochs(epochs)) => {
                self.positive("train.epochs", epochs);
                // In f64: `epochs` × examples must stay a number of steps that a u64 can hold.
                self.rule(epochs <= 1e6, "train.epochs", || {
                    format!("is {epochs}; it must be at most 1000000")
                });
                Some(Length::Epochs(epochs))
            }
            None => {
                self.0.push(FieldError::new("train", "gives no length: set `train.steps` or `train.epochs`"));
                None
            }
        }
    }

    /// How a step is cut.
    fn batch(&mut self, spec: &pb::TrainSpec) {
        let pb::TrainSpec { global_batch, micro_batches, micro_tokens, max_length, .. } = *spec;
        self.range("train.global_batch", global_batch, 1, MAX_BATCH);
        self.range("train.max_length", max_length, 2, MAX_LENGTH);
        self.rule(micro_batches >= 1, "train.micro_batches", || "is 0; it must be at least 1".to_owned());
        self.rule(micro_batches <= global_batch, "train.micro_batches", || {
            format!(
                "is {micro_batches}, more than the {global_batch} examples of a step (`train.global_batch`)"
            )
        });
        self.rule(micro_tokens == 0 || micro_tokens >= max_length, "train.micro_tokens", || {
            format!("is {micro_tokens}, less than one example may have (`train.max_length`, {max_length})")
        });
    }
}
