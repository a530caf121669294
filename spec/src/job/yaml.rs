//! The YAML job file, read into the message: every error at once, each with its field's path.

mod fields;

use lorafleet_proto::v1::{self as pb, train_spec::Length};
use serde_json::{Map, Value};

use super::{
    FieldError,
    check::{self, Parts},
    defaults::{Defaults, fill_defaults, new_checkpoint, new_eval, new_queue, new_train},
};

/// Bytes that a job file may have; more is a mistake.
const MAX_BYTES: usize = 1 << 20;

/// The job file's sections and their fields; the first is the file itself.
const SECTIONS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "name",
            "base",
            "action",
            "task",
            "data",
            "adapter",
            "train",
            "eval",
            "checkpoint",
            "workers",
            "priority",
            "tenant",
            "queue",
        ],
    ),
    ("data", &["train", "eval", "columns", "labels", "overlap", "loss_on"]),
    (
        "adapter",
        &[
            "method",
            "init",
            "start",
            "rank",
            "alpha",
            "targets",
            "exclude",
            "layers",
            "layers_pattern",
            "modules_to_save",
            "rank_pattern",
            "alpha_pattern",
            "rslora",
            "dropout",
        ],
    ),
    (
        "train",
        &[
            "steps",
            "epochs",
            "global_batch",
            "micro_batches",
            "micro_tokens",
            "max_length",
            "lr",
            "loraplus_lr_ratio",
            "schedule",
            "warmup",
            "decay",
            "optimizer",
            "momentum",
            "weight_decay",
            "clip",
            "beta1",
            "beta2",
            "eps",
            "seed",
            "precision",
            "recompute",
            "reduce",
        ],
    ),
    ("eval", &["every", "prompts", "max_new_tokens", "metric", "patience", "min_delta"]),
    ("checkpoint", &["every", "keep", "best", "keep_every"]),
    ("workers", &["min", "max"]),
    ("queue", &["selector", "not_before", "deadline", "max_run_seconds", "after", "retries"]),
];

/// Fields of a base or data set, where one is written as a mapping instead of a path.
const SOURCE_FIELDS: &[&str] = &["source", "sha256"];

/// Words of `action`.
const ACTIONS: &[(&str, i32)] = &[
    ("train", pb::Action::Train as i32),
    ("evaluate", pb::Action::Evaluate as i32),
    ("merge", pb::Action::Merge as i32),
];

/// Words of `adapter.method`.
const METHODS: &[(&str, i32)] = &[
    ("lora", pb::AdapterMethod::Lora as i32),
    ("dora", pb::AdapterMethod::Dora as i32),
    ("full", pb::AdapterMethod::Full as i32),
];

/// Words of `adapter.init`.
const INITS: &[(&str, i32)] = &[
    ("kaiming", pb::AdapterInit::Kaiming as i32),
    ("gaussian", pb::AdapterInit::Gaussian as i32),
    ("pissa", pb::AdapterInit::Pissa as i32),
    ("olora", pb::AdapterInit::Olora as i32),
];

/// Words of `train.schedule`.
const SCHEDULES: &[(&str, i32)] = &[
    ("constant", pb::Schedule::Constant as i32),
    ("linear", pb::Schedule::Linear as i32),
    ("cosine", pb::Schedule::Cosine as i32),
    ("inverse_sqrt", pb::Schedule::InverseSqrt as i32),
    ("wsd", pb::Schedule::Wsd as i32),
];

/// Words of `train.optimizer`.
const OPTIMIZERS: &[(&str, i32)] = &[
    ("adamw", pb::OptimizerKind::Adamw as i32),
    ("adamw_8bit", pb::OptimizerKind::Adamw8bit as i32),
    ("sgd", pb::OptimizerKind::Sgd as i32),
    ("lion", pb::OptimizerKind::Lion as i32),
];

/// Words of `priority`.
const PRIORITIES: &[(&str, i32)] = &[("low", -100), ("normal", 0), ("high", 100), ("urgent", 1000)];

/// Words of `eval.metric`.
const METRICS: &[(&str, i32)] = &[
    ("loss", pb::Metric::Loss as i32),
    ("accuracy", pb::Metric::Accuracy as i32),
    ("f1", pb::Metric::F1 as i32),
    ("matthews", pb::Metric::Matthews as i32),
    ("pearson", pb::Metric::Pearson as i32),
    ("spearman", pb::Metric::Spearman as i32),
];

/// Reads a job file; the message comes with every default filled in, and is a valid [`Job`](super::Job).
///
/// # Errors
/// Everything that is wrong with the file: its syntax, or every field that is unknown (with the nearest name), of
/// the wrong type, or out of range.
///
/// ```
/// let spec = lorafleet_spec::parse_yaml("base: ./base\ndata: {train: train.jsonl}").expect("a whole job file");
/// assert_eq!(spec.adapter.expect("filled in").rank, 16);
///
/// let errors = lorafleet_spec::parse_yaml("base: ./base\ndata: {train: t.jsonl}\nadaptor: {rank: 8}").unwrap_err();
/// assert_eq!(errors[0].to_string(), "adaptor: is not a field of a job file; did you mean `adapter`?");
/// ```
pub fn parse_yaml(text: &str) -> Result<pb::JobSpec, Vec<FieldError>> {
    let (spec, _, errors) = read_lenient(text);
    if errors.is_empty() { Ok(spec) } else { Err(errors) }
}

/// Reads a job file as far as it can be: the message with every default filled in, its valid parts, and everything
/// that is wrong.
pub(crate) fn read_lenient(text: &str) -> (pb::JobSpec, Parts, Vec<FieldError>) {
    let mut reader = Reader { errors: Vec::new() };
    let mut spec = pb::JobSpec::default();
    match parse_root(text) {
        Ok(root) => spec = reader.job(&root),
        Err(message) => reader.error("", message),
    }
    fill_defaults(&mut spec);
    let mut errors = reader.errors;
    let (parts, more) = check::parts(&spec);
    for error in more {
        // A field that could not be read has a default in its place, and one error is enough for it.
        if !errors.iter().any(|known| covers(&known.path, &error.path)) {
            errors.push(error);
        }
    }
    (spec, parts, errors)
}

/// Reads the fields of a job file as they stand there: without defaults, and without asking for any.
pub(crate) fn read_fields(root: &Map<String, Value>) -> (pb::JobSpec, Vec<FieldError>) {
    let mut reader = Reader { errors: Vec::new() };
    let spec = reader.job(root);
    (spec, reader.errors)
}

/// Whether an error at `known` makes one at `path` a consequence of it.
pub(crate) fn covers(known: &str, path: &str) -> bool {
    known.is_empty()
        || path.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// The fields of a job file by their names.
pub(crate) fn parse_root(text: &str) -> Result<Map<String, Value>, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("the job file has {} bytes; {MAX_BYTES} are allowed", text.len()));
    }
    match serde_saphyr::from_str::<Value>(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(Value::Null) => Err("the job file is empty; it needs at least `base` and `data.train`".to_owned()),
        Ok(other) => Err(format!("the job file holds {}, not fields with values", kind(&other))),
        Err(error) => Err(format!("the job file is not YAML: {error}")),
    }
}

/// Walks the parsed file and collects what is wrong with it.
struct Reader {
    errors: Vec<FieldError>,
}

/// One section of the file: its path and its fields.
struct Section<'a> {
    path: &'a str,
    fields: &'a Map<String, Value>,
}

impl Section<'_> {
    fn path(&self, field: &str) -> String {
        join(self.path, field)
    }

    /// The field's value, unless it is absent or null (`eval:` with nothing behind it).
    fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }
}

impl Reader {
    fn job(&mut self, root: &Map<String, Value>) -> pb::JobSpec {
        let root = Section { path: "", fields: root };
        self.unknown_fields(&root);
        let mut spec = pb::JobSpec {
            display_name: self.string(&root, "name").unwrap_or_default(),
            base: self.source(&root, "base").map(|(source, sha256)| pb::BaseRef { source, sha256 }),
            action: self.choice(&root, "action", ACTIONS),
            task: self.choice(
                &root,
                "task",
                &[
                    ("causal_lm", pb::Task::CausalLm as i32),
                    ("classification", pb::Task::Classification as i32),
                ],
            ),
            tenant: self.string(&root, "tenant").unwrap_or_default(),
            priority: self.priority(&root).unwrap_or_default(),
            ..Default::default()
        };
        spec.data = self.section(&root, "data").map(|section| self.data(&section));
        spec.adapter = self.adapter_of(&root);
        spec.train = self.section(&root, "train").map(|section| self.train(&section));
        spec.eval = self.section(&root, "eval").map(|section| {
            let default = new_eval();
            pb::EvalSpec {
                every: self.whole(&section, "every", 0, u64::MAX).unwrap_or(default.every),
                prompts: self.strings(&section, "prompts"),
                max_new_tokens: self.whole32(&section, "max_new_tokens", 1).unwrap_or_default(),
                metric: self.choice(&section, "metric", METRICS),
                patience: self.whole32(&section, "patience", 0).unwrap_or_default(),
                min_delta: self.number(&section, "min_delta").unwrap_or_default(),
            }
        });
        spec.checkpoint = self.section(&root, "checkpoint").map(|section| {
            let default = new_checkpoint();
            pb::CheckpointSpec {
                every: self.whole(&section, "every", 0, u64::MAX).unwrap_or(default.every),
                keep: self.whole32(&section, "keep", 1).unwrap_or_default(),
                best: self.boolean(&section, "best").unwrap_or_default(),
                keep_every: self.whole(&section, "keep_every", 0, u64::MAX).unwrap_or_default(),
            }
        });
        spec.workers = self.section(&root, "workers").map(|section| pb::WorkersSpec {
            min: self.whole32(&section, "min", 1).unwrap_or_default(),
            max: self.whole32(&section, "max", 1).unwrap_or_default(),
        });
        spec.queue = self.section(&root, "queue").map(|section| self.queue(&section));
        self.useless(&root, spec.action);
        spec
    }

    /// The section, or in its stead the adapter to begin with: `adapter: jobs/NAME`.
    fn adapter_of(&mut self, root: &Section<'_>) -> Option<pb::AdapterSpec> {
        if !root.get("adapter").is_some_and(Value::is_string) {
            return self.section(root, "adapter").map(|section| self.adapter(&section));
        }
        let start = self.source(root, "adapter").map(adapter_ref);
        Some(pb::AdapterSpec { rank: Defaults::RANK, start, ..Default::default() })
    }

    /// What stands in the file and means nothing to an action that does not train.
    fn useless(&mut self, root: &Section<'_>, action: i32) {
        let (what, sections): (_, &[&str]) = match pb::Action::try_from(action) {
            Ok(pb::Action::Evaluate) => ("an evaluation", &["checkpoint"]),
            Ok(pb::Action::Merge) => ("a merge", &["data", "train", "eval", "checkpoint"]),
            _ => return,
        };
        for section in sections.iter().filter(|section| root.get(section).is_some()) {
            self.error(*section, format!("means nothing to {what}; leave it out"));
        }
        let Some(Value::Object(adapter)) = root.get("adapter") else { return };
        for field in adapter.keys().filter(|field| *field != "start") {
            self.error(
                format!("adapter.{field}"),
                format!("means nothing to {what}, whose adapter is made already; leave it out"),
            );
        }
    }

    fn queue(&mut self, section: &Section<'_>) -> pb::QueueSpec {
        pb::QueueSpec {
            selector: self.texts_by_name(section, "selector"),
            not_before: self.string(section, "not_before").unwrap_or_default(),
            deadline: self.string(section, "deadline").unwrap_or_default(),
            max_run_seconds: self.whole(section, "max_run_seconds", 0, u64::MAX).unwrap_or_default(),
            after: self.strings(section, "after"),
            retries: self.whole32(section, "retries", 0).unwrap_or(new_queue().retries),
        }
    }

    fn data(&mut self, section: &Section<'_>) -> pb::DataSpec {
        let mut files = |field| -> Vec<pb::DataRef> {
            let files = self.sources(section, field).into_iter();
            files.map(|(source, sha256)| pb::DataRef { source, sha256 }).collect()
        };
        pb::DataSpec {
            train: files("train"),
            eval: files("eval"),
            columns: self.texts_by_name(section, "columns"),
            labels: self.strings(section, "labels"),
            overlap: self.whole32(section, "overlap", 0).unwrap_or_default(),
            loss_on: self.choice(
                section,
                "loss_on",
                &[("completions", pb::LossOn::Completions as i32), ("all", pb::LossOn::All as i32)],
            ),
        }
    }

    fn adapter(&mut self, section: &Section<'_>) -> pb::AdapterSpec {
        let start = self.source(section, "start");
        pb::AdapterSpec {
            method: self.choice(section, "method", METHODS),
            init: self.choice(section, "init", INITS),
            start: start.map(adapter_ref),
            layers_pattern: self.strings(section, "layers_pattern"),
            modules_to_save: self.strings(section, "modules_to_save"),
            rank: self.whole32(section, "rank", 1).unwrap_or(Defaults::RANK),
            alpha: self.positive(section, "alpha"),
            targets: self.strings(section, "targets"),
            exclude: self.strings(section, "exclude"),
            layers: self.layers(section),
            rank_pattern: self.pattern(section, "rank_pattern", |reader, patterns, pattern| {
                reader
                    .whole32(patterns, pattern, 1)
                    .map(|rank| pb::RankPattern { pattern: pattern.to_owned(), rank })
            }),
            alpha_pattern: self.pattern(section, "alpha_pattern", |reader, patterns, pattern| {
                reader
                    .number(patterns, pattern)
                    .map(|alpha| pb::AlphaPattern { pattern: pattern.to_owned(), alpha })
            }),
            rslora: self.boolean(section, "rslora").unwrap_or_default(),
            dropout: self.number(section, "dropout").unwrap_or_default(),
        }
    }

    fn train(&mut self, section: &Section<'_>) -> pb::TrainSpec {
        let default = new_train();
        let steps = self.whole(section, "steps", 1, u64::MAX);
        let epochs = self.number(section, "epochs");
        if section.get("steps").is_some() && section.get("epochs").is_some() {
            self.error(section.path("steps"), "is given beside `train.epochs`; keep one of them");
        }
        pb::TrainSpec {
            length: steps.map(Length::Steps).or(epochs.map(Length::Epochs)),
            global_batch: self.whole32(section, "global_batch", 1).unwrap_or_default(),
            micro_batches: self.whole32(section, "micro_batches", 0).unwrap_or_default(),
            micro_tokens: self.whole32(section, "micro_tokens", 0).unwrap_or_default(),
            max_length: self.whole32(section, "max_length", 2).unwrap_or_default(),
            lr: self.positive(section, "lr"),
            loraplus_lr_ratio: self.positive(section, "loraplus_lr_ratio"),
            schedule: self.choice(section, "schedule", SCHEDULES),
            decay: self.positive(section, "decay"),
            optimizer: self.choice(section, "optimizer", OPTIMIZERS),
            momentum: self.number(section, "momentum").unwrap_or(default.momentum),
            warmup: self.number(section, "warmup").unwrap_or(default.warmup),
            weight_decay: self.number(section, "weight_decay").unwrap_or_default(),
            clip: self.number(section, "clip").unwrap_or(default.clip),
            beta1: self.positive(section, "beta1"),
            beta2: self.positive(section, "beta2"),
            eps: self.positive(section, "eps"),
            seed: self.whole(section, "seed", 0, u64::MAX).unwrap_or_default(),
            precision: self.choice(
                section,
                "precision",
                &[("f32", pb::Precision::F32 as i32), ("bf16", pb::Precision::Bf16 as i32)],
            ),
            recompute: self.boolean(section, "recompute").unwrap_or_default(),
            reduce: self.choice(
                section,
                "reduce",
                &[("exact", pb::Reduce::Exact as i32), ("f32", pb::Reduce::F32 as i32)],
            ),
        }
    }
}

/// A job where its name begins as a job's does, else a folder. (A folder of such a name is written `./jobs/…`.)
fn adapter_ref((source, sha256): (String, String)) -> pb::AdapterRef {
    if source.starts_with("jobs/") && sha256.is_empty() {
        return pb::AdapterRef { job: source, ..Default::default() };
    }
    pb::AdapterRef { source, sha256, ..Default::default() }
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "fields with values",
    }
}
