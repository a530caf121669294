//! The rules that a job's fields must keep, by themselves and with each other.

use std::collections::HashSet;

use lorafleet_proto::v1::{self as pb, train_spec};

use super::{
    AdapterSpec, CheckpointSpec, EvalSpec, FieldError, Job, Length, Precision, Reduce, Schedule, Source,
    Task, TrainSpec, WorkersSpec,
};
use crate::{
    digest::is_sha256,
    targets::{TargetRule, check_pattern},
};

/// Steps a job may have.
const MAX_STEPS: u64 = 100_000_000;
/// Examples a step may have.
const MAX_BATCH: u32 = 1 << 20;
/// Tokens an example may have.
const MAX_LENGTH: u32 = 1 << 20;
/// Workers a job may use.
const MAX_WORKERS: u32 = 1024;
/// Checkpoints a job may keep.
const MAX_KEEP: u32 = 10_000;
/// Prompts a job may have answered.
const MAX_PROMPTS: usize = 64;
/// Characters of one prompt.
const MAX_PROMPT_CHARS: usize = 32_768;
/// Tokens of one answer.
const MAX_NEW_TOKENS: u32 = 8192;
/// Entries of one list in the adapter's section.
const MAX_LIST: usize = 4096;

/// The parts of a job, each as far as it can be told; none of them counts where its section has an error.
pub(crate) struct Parts {
    base: Option<Source>,
    task: Option<Task>,
    train_data: Option<Source>,
    eval_data: Option<Source>,
    pub adapter: Option<AdapterSpec>,
    train: Option<TrainSpec>,
    eval: EvalSpec,
    checkpoint: CheckpointSpec,
    workers: WorkersSpec,
}

/// Checks every field.
pub(super) fn parts(spec: &pb::JobSpec) -> (Parts, Vec<FieldError>) {
    let mut check = Check(Vec::new());
    check.name(&spec.display_name);
    let data = spec.data.clone().unwrap_or_default();
    let train = spec.train.unwrap_or_default();
    let parts = Parts {
        task: check.task(spec.task),
        base: check.required("base", spec.base.as_ref().map(|base| (&base.source, &base.sha256))),
        train_data: check
            .required("data.train", data.train.as_ref().map(|data| (&data.source, &data.sha256))),
        eval_data: data.eval.as_ref().and_then(|data| check.source("data.eval", &data.source, &data.sha256)),
        adapter: check.adapter(&spec.adapter.clone().unwrap_or_default()),
        train: check.train(&train),
        eval: check.eval(&spec.eval.clone().unwrap_or_default()),
        checkpoint: check.checkpoint(&spec.checkpoint.unwrap_or_default()),
        workers: check.workers(&spec.workers.unwrap_or_default(), train.micro_batches),
    };
    (parts, check.0)
}

/// Checks every field; a job when all of them are right.
pub(super) fn job(spec: &pb::JobSpec) -> Result<Job, Vec<FieldError>> {
    let (parts, errors) = parts(spec);
    parts.into_job(spec.display_name.clone()).filter(|_| errors.is_empty()).ok_or(errors)
}

impl Parts {
    fn into_job(self, name: String) -> Option<Job> {
        Some(Job {
            name,
            base: self.base?,
            task: self.task?,
            train_data: self.train_data?,
            eval_data: self.eval_data,
            adapter: self.adapter?,
            train: self.train?,
            eval: self.eval,
            checkpoint: self.checkpoint,
            workers: self.workers,
        })
    }
}

/// Collects errors; whatever it returns is used only when there are none.
struct Check(Vec<FieldError>);

impl Check {
    /// Adds an error unless `good`.
    fn rule(&mut self, good: bool, path: &str, message: impl FnOnce() -> String) {
        if !good {
            self.0.push(FieldError::new(path, message()));
        }
    }

    fn range<T: PartialOrd + std::fmt::Display>(&mut self, path: &str, value: T, min: T, max: T) {
        self.rule(value >= min && value <= max, path, || {
            format!("is {value}; it must be from {min} to {max}")
        });
    }

    fn positive(&mut self, path: &str, value: f64) {
        self.rule(value.is_finite() && value > 0.0, path, || format!("is {value}; it must be above 0"));
    }

    fn not_negative(&mut self, path: &str, value: f64) {
        self.rule(value.is_finite() && value >= 0.0, path, || format!("is {value}; it must be 0 or above"));
    }

    fn choice<T>(&mut self, path: &str, value: Option<T>, number: i32, known: &str) -> Option<T> {
        self.rule(value.is_some(), path, || format!("has the unknown value {number}; it must be {known}"));
        value
    }

    fn name(&mut self, name: &str) {
        let good = (1..=63).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        self.rule(good, "name", || {
            format!("is {name:?}; it must be 1 to 63 letters, digits, '-', '_' or '.' of ASCII")
        });
    }

    fn task(&mut self, number: i32) -> Option<Task> {
        let task = match pb::Task::try_from(number) {
            Ok(pb::Task::CausalLm) => Some(Task::CausalLm),
            _ => None,
        };
        self.choice("task", task, number, "causal_lm")
    }

    fn required(&mut self, path: &str, source: Option<(&String, &String)>) -> Option<Source> {
        let found = source.and_then(|(source, sha256)| self.source(path, source, sha256));
        let absent = source.is_none_or(|(source, sha256)| source.is_empty() && sha256.is_empty());
        self.rule(!absent, path, || "is required".to_owned());
        found
    }

    fn source(&mut self, path: &str, source: &str, sha256: &str) -> Option<Source> {
        self.rule(sha256.is_empty() || is_sha256(sha256), &format!("{path}.sha256"), || {
            "must be 64 lower-case hex digits".to_owned()
        });
        (!source.is_empty() || !sha256.is_empty()).then(|| Source {
            source: source.to_owned(),
            sha256: (!sha256.is_empty()).then(|| sha256.to_owned()),
        })
    }

    fn adapter(&mut self, spec: &pb::AdapterSpec) -> Option<AdapterSpec> {
        let method = pb::AdapterMethod::try_from(spec.method).ok().filter(|m| *m == pb::AdapterMethod::Lora);
        self.choice("adapter.method", method, spec.method, "lora")?;
        self.rule(spec.rank >= 1, "adapter.rank", || "is 0; it must be at least 1".to_owned());
        self.positive("adapter.alpha", spec.alpha);
        self.rule(spec.dropout == 0.0, "adapter.dropout", || {
            format!("is {}; dropout cannot be trained yet, leave it at 0", spec.dropout)
        });
        let targets = self.targets("adapter.targets", &spec.targets);
        let exclude =
            if spec.exclude.is_empty() { None } else { self.targets("adapter.exclude", &spec.exclude) };
        self.rule(exclude != Some(TargetRule::AllLinear), "adapter.exclude", || {
            "is all-linear, which leaves nothing to train".to_owned()
        });
        self.rule(
            spec.layers.is_empty() || !matches!(targets, Some(TargetRule::Pattern(_))),
            "adapter.layers",
            || {
                "cannot be combined with a regular expression in `adapter.targets`; put the layers into it"
                    .to_owned()
            },
        );
        self.range("adapter.layers", spec.layers.len(), 0, MAX_LIST);
        Some(AdapterSpec {
            rank: spec.rank,
            alpha: spec.alpha,
            targets: targets?,
            exclude,
            layers: spec.layers.clone(),
            rank_pattern: self.rank_pattern(&spec.rank_pattern),
            alpha_pattern: self.alpha_pattern(&spec.alpha_pattern),
            rslora: spec.rslora,
        })
    }

    fn targets(&mut self, path: &str, entries: &[String]) -> Option<TargetRule> {
        self.range(path, entries.len(), 0, MAX_LIST);
        TargetRule::parse(entries).map_err(|message| self.0.push(FieldError::new(path, message))).ok()
    }

    fn rank_pattern(&mut self, patterns: &[pb::RankPattern]) -> Vec<(String, u32)> {
        self.patterns("adapter.rank_pattern", patterns.iter().map(|p| p.pattern.as_str()));
        for p in patterns {
            let path = format!("adapter.rank_pattern.{}", p.pattern);
            self.rule(p.rank >= 1, &path, || "is 0; it must be at least 1".to_owned());
        }
        patterns.iter().map(|p| (p.pattern.clone(), p.rank)).collect()
    }

    fn alpha_pattern(&mut self, patterns: &[pb::AlphaPattern]) -> Vec<(String, f64)> {
        self.patterns("adapter.alpha_pattern", patterns.iter().map(|p| p.pattern.as_str()));
        for p in patterns {
            self.positive(&format!("adapter.alpha_pattern.{}", p.pattern), p.alpha);
        }
        patterns.iter().map(|p| (p.pattern.clone(), p.alpha)).collect()
    }

    fn patterns<'a>(&mut self, path: &str, patterns: impl Iterator<Item = &'a str>) {
        let mut seen = HashSet::new();
        for pattern in patterns {
            let path = format!("{path}.{pattern}");
            if let Err(message) = check_pattern(pattern) {
                self.0.push(FieldError::new(&path, message));
            }
            self.rule(seen.insert(pattern), &path, || "is given twice".to_owned());
        }
        self.range(path, seen.len(), 0, MAX_LIST);
    }

    fn train(&mut self, spec: &pb::TrainSpec) -> Option<TrainSpec> {
        let length = self.length(spec.length);
        self.batch(spec);
        self.positive("train.lr", spec.lr);
        self.not_negative("train.warmup", spec.warmup);
        self.not_negative("train.weight_decay", spec.weight_decay);
        self.not_negative("train.clip", spec.clip);
        for (path, beta) in [("train.beta1", spec.beta1), ("train.beta2", spec.beta2)] {
            self.rule((0.0..1.0).contains(&beta), path, || {
                format!("is {beta}; it must be 0 or above, and below 1")
            });
        }
        self.positive("train.eps", spec.eps);
        let schedule = match pb::Schedule::try_from(spec.schedule) {
            Ok(pb::Schedule::Constant) => Some(Schedule::Constant),
            Ok(pb::Schedule::Linear) => Some(Schedule::Linear),
            Ok(pb::Schedule::Cosine) => Some(Schedule::Cosine),
            _ => None,
        };
        let schedule = self.choice("train.schedule", schedule, spec.schedule, "constant, linear or cosine");
        let precision = match pb::Precision::try_from(spec.precision) {
            Ok(pb::Precision::F32) => Some(Precision::F32),
            _ => None,
        };
        let precision = self.choice("train.precision", precision, spec.precision, "f32");
        let reduce = match pb::Reduce::try_from(spec.reduce) {
            Ok(pb::Reduce::Exact) => Some(Reduce::Exact),
            Ok(pb::Reduce::F32) => Some(Reduce::F32),
            _ => None,
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

    fn eval(&mut self, spec: &pb::EvalSpec) -> EvalSpec {
        self.range("eval.max_new_tokens", spec.max_new_tokens, 1, MAX_NEW_TOKENS);
        self.range("eval.prompts", spec.prompts.len(), 0, MAX_PROMPTS);
        for (i, prompt) in spec.prompts.iter().enumerate() {
            let path = format!("eval.prompts[{i}]");
            self.rule(!prompt.trim().is_empty(), &path, || "is empty".to_owned());
            self.rule(prompt.len() <= MAX_PROMPT_CHARS, &path, || {
                format!("has {} bytes; {MAX_PROMPT_CHARS} are allowed", prompt.len())
            });
        }
        EvalSpec { every: spec.every, prompts: spec.prompts.clone(), max_new_tokens: spec.max_new_tokens }
    }

    fn checkpoint(&mut self, spec: &pb::CheckpointSpec) -> CheckpointSpec {
        self.range("checkpoint.keep", spec.keep, 1, MAX_KEEP);
        CheckpointSpec { every: spec.every, keep: spec.keep }
    }

    fn workers(&mut self, spec: &pb::WorkersSpec, micro_batches: u32) -> WorkersSpec {
        let pb::WorkersSpec { min, max } = *spec;
        self.range("workers.min", min, 1, MAX_WORKERS);
        self.range("workers.max", max, 1, MAX_WORKERS);
        self.rule(min <= max, "workers.min", || format!("is {min}, more than `workers.max` ({max})"));
        self.rule(max <= micro_batches, "workers.max", || {
            format!(
                "is {max}, more than the {micro_batches} micro-batches of a step: a worker takes whole ones, so raise \
                 `train.micro_batches` or lower this"
            )
        });
        WorkersSpec { min, max }
    }
}
