//! The rules that a job's fields must keep, by themselves and with each other.

mod action;
mod adapter;
mod data;
mod queue;
mod train;

use lorafleet_proto::v1 as pb;

use super::{
    Action, AdapterSpec, CheckpointSpec, DataSpec, EvalSpec, FieldError, Job, Metric, QueueSpec, Source,
    Task, TrainSpec, WorkersSpec,
};
use crate::{
    digest::is_sha256,
    tenant::{TENANT_NAME_FORM, is_tenant_name},
};
pub use queue::{MAX_AFTER, check_label};

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
/// Priorities lie between this and its negative.
const MAX_PRIORITY: i32 = 1000;
/// Entries of one list of names.
const MAX_LIST: usize = 4096;

/// The parts of a job, each as far as it can be told; none of them counts where its section has an error.
pub(crate) struct Parts {
    base: Option<Source>,
    pub action: Option<Action>,
    pub task: Option<Task>,
    pub data: Option<DataSpec>,
    pub adapter: Option<AdapterSpec>,
    train: Option<TrainSpec>,
    eval: EvalSpec,
    checkpoint: CheckpointSpec,
    workers: WorkersSpec,
    priority: i32,
    queue: QueueSpec,
}

/// Checks every field.
pub(super) fn parts(spec: &pb::JobSpec) -> (Parts, Vec<FieldError>) {
    let mut check = Check(Vec::new());
    check.name(&spec.display_name);
    check.tenant(&spec.tenant);
    let train = spec.train.unwrap_or_default();
    let task = check.task(spec.task);
    let action = check.action(spec.action);
    let parts = Parts {
        action,
        task,
        base: check.required("base", spec.base.as_ref().map(|base| (&base.source, &base.sha256))),
        data: check.data(&spec.data.clone().unwrap_or_default(), train.max_length, action),
        adapter: check.adapter(&spec.adapter.clone().unwrap_or_default()),
        train: check.train(&train),
        eval: check.eval(&spec.eval.clone().unwrap_or_default(), task),
        checkpoint: check.checkpoint(&spec.checkpoint.unwrap_or_default()),
        workers: check.workers(&spec.workers.unwrap_or_default(), train.micro_batches),
        priority: check.priority(spec.priority),
        queue: check.queue(&spec.queue.clone().unwrap_or_default()),
    };
    check.of_action(spec, action);
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
            action: self.action?,
            task: self.task?,
            data: self.data?,
            adapter: self.adapter?,
            train: self.train?,
            eval: self.eval,
            checkpoint: self.checkpoint,
            workers: self.workers,
            priority: self.priority,
            queue: self.queue,
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

    /// An empty one is filled in by whoever stores the job: it depends on the caller.
    fn tenant(&mut self, name: &str) {
        self.rule(name.is_empty() || is_tenant_name(name), "tenant", || {
            format!("is {name:?}; a tenant's name has {TENANT_NAME_FORM}")
        });
    }

    fn task(&mut self, number: i32) -> Option<Task> {
        let task = match pb::Task::try_from(number) {
            Ok(pb::Task::CausalLm) => Some(Task::CausalLm),
            Ok(pb::Task::Classification) => Some(Task::Classification),
            Ok(pb::Task::Unspecified) | Err(_) => None,
        };
        self.choice("task", task, number, "causal_lm or classification")
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

    fn eval(&mut self, spec: &pb::EvalSpec, task: Option<Task>) -> EvalSpec {
        self.range("eval.max_new_tokens", spec.max_new_tokens, 1, MAX_NEW_TOKENS);
        self.range("eval.prompts", spec.prompts.len(), 0, MAX_PROMPTS);
        for (i, prompt) in spec.prompts.iter().enumerate() {
            let path = format!("eval.prompts[{i}]");
            self.rule(!prompt.trim().is_empty(), &path, || "is empty".to_owned());
            self.rule(prompt.len() <= MAX_PROMPT_CHARS, &path, || {
                format!("has {} bytes; {MAX_PROMPT_CHARS} are allowed", prompt.len())
            });
        }
        self.rule(spec.prompts.is_empty() || task != Some(Task::Classification), "eval.prompts", || {
            "are answered by language models only; leave them out of a classification".to_owned()
        });
        self.not_negative("eval.min_delta", spec.min_delta);
        let metric = match pb::Metric::try_from(spec.metric) {
            Ok(pb::Metric::Loss) => Some(Metric::Loss),
            Ok(pb::Metric::Accuracy) => Some(Metric::Accuracy),
            Ok(pb::Metric::F1) => Some(Metric::F1),
            Ok(pb::Metric::Matthews) => Some(Metric::Matthews),
            Ok(pb::Metric::Pearson) => Some(Metric::Pearson),
            Ok(pb::Metric::Spearman) => Some(Metric::Spearman),
            Ok(pb::Metric::Unspecified) | Err(_) => None,
        };
        let known = Metric::ALL.map(Metric::name).join(", ");
        let metric = self.choice("eval.metric", metric, spec.metric, &format!("one of {known}"));
        let metric = metric.unwrap_or(Metric::Loss);
        self.rule(metric == Metric::Loss || task != Some(Task::CausalLm), "eval.metric", || {
            format!("is {}, which only a classification has; a language model has loss", metric.name())
        });
        EvalSpec {
            every: spec.every,
            prompts: spec.prompts.clone(),
            max_new_tokens: spec.max_new_tokens,
            metric,
            patience: spec.patience,
            min_delta: spec.min_delta,
        }
    }

    fn checkpoint(&mut self, spec: &pb::CheckpointSpec) -> CheckpointSpec {
        self.range("checkpoint.keep", spec.keep, 1, MAX_KEEP);
        let pb::CheckpointSpec { every, keep, best, keep_every } = *spec;
        self.rule(
            keep_every == 0 || (every > 0 && keep_every.is_multiple_of(every)),
            "checkpoint.keep_every",
            || format!("is {keep_every}; it must be a multiple of `checkpoint.every` ({every}), or 0"),
        );
        CheckpointSpec { every, keep, best, keep_every }
    }

    fn priority(&mut self, priority: i32) -> i32 {
        self.range("priority", priority, -MAX_PRIORITY, MAX_PRIORITY);
        priority
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
