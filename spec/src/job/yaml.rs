//! The YAML job file, read into the message: every error at once, each with its field's path.

use lorafleet_proto::v1::{self as pb, train_spec::Length};
use serde_json::{Map, Value};

use super::{
    FieldError,
    check::{self, Parts},
    defaults::{Defaults, fill_defaults, new_checkpoint, new_eval, new_train},
};

/// Bytes that a job file may have; more is a mistake.
const MAX_BYTES: usize = 1 << 20;

/// The job file's sections and their fields; the first is the file itself.
const SECTIONS: &[(&str, &[&str])] = &[
    ("", &["name", "base", "task", "data", "adapter", "train", "eval", "checkpoint", "workers"]),
    ("data", &["train", "eval"]),
    (
        "adapter",
        &[
            "method",
            "rank",
            "alpha",
            "targets",
            "exclude",
            "layers",
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
            "schedule",
            "warmup",
            "weight_decay",
            "clip",
            "beta1",
            "beta2",
            "eps",
            "seed",
            "precision",
            "reduce",
        ],
    ),
    ("eval", &["every", "prompts", "max_new_tokens"]),
    ("checkpoint", &["every", "keep"]),
    ("workers", &["min", "max"]),
];

/// Fields of a base or data set, where one is written as a mapping instead of a path.
const SOURCE_FIELDS: &[&str] = &["source", "sha256"];

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
    match parse(text) {
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

/// Whether an error at `known` makes one at `path` a consequence of it.
pub(crate) fn covers(known: &str, path: &str) -> bool {
    known.is_empty()
        || path.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

fn parse(text: &str) -> Result<Map<String, Value>, String> {
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
    path: &'static str,
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
            task: self.choice(&root, "task", &[("causal_lm", pb::Task::CausalLm as i32)]),
            ..Default::default()
        };
        spec.data = self.section(&root, "data").map(|section| pb::DataSpec {
            train: self.source(&section, "train").map(|(source, sha256)| pb::DataRef { source, sha256 }),
            eval: self.source(&section, "eval").map(|(source, sha256)| pb::DataRef { source, sha256 }),
        });
        spec.adapter = self.section(&root, "adapter").map(|section| self.adapter(&section));
        spec.train = self.section(&root, "train").map(|section| self.train(&section));
        spec.eval = self.section(&root, "eval").map(|section| {
            let default = new_eval();
            pb::EvalSpec {
                every: self.whole(&section, "every", 0, u64::MAX).unwrap_or(default.every),
                prompts: self.strings(&section, "prompts"),
                max_new_tokens: self.whole32(&section, "max_new_tokens", 1).unwrap_or_default(),
            }
        });
        spec.checkpoint = self.section(&root, "checkpoint").map(|section| {
            let default = new_checkpoint();
            pb::CheckpointSpec {
                every: self.whole(&section, "every", 0, u64::MAX).unwrap_or(default.every),
                keep: self.whole32(&section, "keep", 1).unwrap_or_default(),
            }
        });
        spec.workers = self.section(&root, "workers").map(|section| pb::WorkersSpec {
            min: self.whole32(&section, "min", 1).unwrap_or_default(),
            max: self.whole32(&section, "max", 1).unwrap_or_default(),
        });
        spec
    }

    fn adapter(&mut self, section: &Section<'_>) -> pb::AdapterSpec {
        pb::AdapterSpec {
            method: self.choice(section, "method", &[("lora", pb::AdapterMethod::Lora as i32)]),
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
            schedule: self.choice(
                section,
                "schedule",
                &[
                    ("constant", pb::Schedule::Constant as i32),
                    ("linear", pb::Schedule::Linear as i32),
                    ("cosine", pb::Schedule::Cosine as i32),
                ],
            ),
            warmup: self.number(section, "warmup").unwrap_or(default.warmup),
            weight_decay: self.number(section, "weight_decay").unwrap_or_default(),
            clip: self.number(section, "clip").unwrap_or(default.clip),
            beta1: self.positive(section, "beta1"),
            beta2: self.positive(section, "beta2"),
            eps: self.positive(section, "eps"),
            seed: self.whole(section, "seed", 0, u64::MAX).unwrap_or_default(),
            precision: self.choice(section, "precision", &[("f32", pb::Precision::F32 as i32)]),
            reduce: self.choice(
                section,
                "reduce",
                &[("exact", pb::Reduce::Exact as i32), ("f32", pb::Reduce::F32 as i32)],
            ),
        }
    }

    // === one field ===

    fn error(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.errors.push(FieldError::new(path, message));
    }

    fn wrong_type(&mut self, path: String, wanted: &str, value: &Value) {
        self.error(path, format!("must be {wanted}, not {}", kind(value)));
    }

    fn section<'a>(&mut self, parent: &Section<'a>, field: &'static str) -> Option<Section<'a>> {
        let value = parent.fields.get(field).filter(|value| !value.is_null())?;
        let Value::Object(fields) = value else {
            self.wrong_type(parent.path(field), "fields with values", value);
            return None;
        };
        let section = Section { path: field, fields };
        self.unknown_fields(&section);
        Some(section)
    }

    fn string(&mut self, section: &Section<'_>, field: &str) -> Option<String> {
        match section.get(field)? {
            Value::String(text) => Some(text.clone()),
            // `name: 2024` and `sha256: 123…` are texts to whoever wrote them.
            Value::Number(number) => Some(number.to_string()),
            other => {
                self.wrong_type(section.path(field), "a text", other);
                None
            }
        }
    }

    fn boolean(&mut self, section: &Section<'_>, field: &str) -> Option<bool> {
        let value = section.get(field)?;
        if value.as_bool().is_none() {
            self.wrong_type(section.path(field), "true or false", value);
        }
        value.as_bool()
    }

    fn number(&mut self, section: &Section<'_>, field: &str) -> Option<f64> {
        let value = section.get(field)?;
        let number = value.as_f64().filter(|number| number.is_finite());
        if number.is_none() {
            self.wrong_type(section.path(field), "a finite number", value);
        }
        number
    }

    /// A number above 0; 0 when absent, which [`fill_defaults`] replaces.
    fn positive(&mut self, section: &Section<'_>, field: &str) -> f64 {
        match self.number(section, field) {
            Some(number) if number <= 0.0 => {
                self.error(section.path(field), format!("is {number}; it must be above 0"));
                0.0
            }
            number => number.unwrap_or_default(),
        }
    }

    fn whole(&mut self, section: &Section<'_>, field: &str, min: u64, max: u64) -> Option<u64> {
        let value = section.get(field)?;
        let Some(number) = value.as_u64() else {
            let wanted = format!("a whole number, at least {min}");
            match value {
                Value::Number(number) => {
                    self.error(section.path(field), format!("is {number}; it must be {wanted}"))
                }
                other => self.wrong_type(section.path(field), &wanted, other),
            }
            return None;
        };
        if number < min {
            self.error(section.path(field), format!("is {number}; it must be at least {min}"));
        } else if number > max {
            self.error(section.path(field), format!("is {number}; it must be at most {max}"));
        }
        (min..=max).contains(&number).then_some(number)
    }

    fn whole32(&mut self, section: &Section<'_>, field: &str, min: u64) -> Option<u32> {
        self.whole(section, field, min, u64::from(u32::MAX)).and_then(|number| u32::try_from(number).ok())
    }

    /// One text, or a list of them.
    fn strings(&mut self, section: &Section<'_>, field: &str) -> Vec<String> {
        match section.get(field) {
            None => Vec::new(),
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(items)) => {
                let mut texts = Vec::with_capacity(items.len());
                for (i, item) in items.iter().enumerate() {
                    match item {
                        Value::String(text) => texts.push(text.clone()),
                        other => self.wrong_type(format!("{}[{i}]", section.path(field)), "a text", other),
                    }
                }
                texts
            }
            Some(other) => {
                self.wrong_type(section.path(field), "a text or a list of texts", other);
                Vec::new()
            }
        }
    }

    /// One layer index, or a list of them.
    fn layers(&mut self, section: &Section<'_>) -> Vec<u32> {
        let path = section.path("layers");
        let items = match section.get("layers") {
            None => return Vec::new(),
            Some(Value::Array(items)) => items.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        let mut layers = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            match item.as_u64().and_then(|layer| u32::try_from(layer).ok()) {
                Some(layer) => layers.push(layer),
                None => self.wrong_type(format!("{path}[{i}]"), "a layer's index, from 0", item),
            }
        }
        layers
    }

    fn pattern<T>(
        &mut self,
        section: &Section<'_>,
        field: &'static str,
        mut one: impl FnMut(&mut Self, &Section<'_>, &str) -> Option<T>,
    ) -> Vec<T> {
        let fields = match section.get(field) {
            None => return Vec::new(),
            Some(Value::Object(fields)) => fields,
            Some(other) => {
                self.wrong_type(section.path(field), "patterns with values", other);
                return Vec::new();
            }
        };
        let path = if field == "rank_pattern" { "adapter.rank_pattern" } else { "adapter.alpha_pattern" };
        let patterns = Section { path, fields };
        fields.keys().filter_map(|pattern| one(self, &patterns, pattern)).collect()
    }

    /// A base or data set: a path, or what an earlier upload is named by.
    fn source(&mut self, section: &Section<'_>, field: &'static str) -> Option<(String, String)> {
        match section.get(field)? {
            Value::String(text) => Some((text.clone(), String::new())),
            Value::Object(fields) => {
                let path = match (section.path, field) {
                    ("data", "train") => "data.train",
                    ("data", _) => "data.eval",
                    _ => "base",
                };
                let source = Section { path, fields };
                self.unknown_in(&source, SOURCE_FIELDS);
                let (text, sha256) = (self.string(&source, "source"), self.string(&source, "sha256"));
                Some((text.unwrap_or_default(), sha256.unwrap_or_default()))
            }
            other => {
                self.wrong_type(section.path(field), "a path", other);
                None
            }
        }
    }

    /// One of a few words, as the number of its enum value; 0 (unspecified) when absent.
    fn choice(&mut self, section: &Section<'_>, field: &str, words: &[(&str, i32)]) -> i32 {
        let Some(value) = section.get(field) else { return 0 };
        let known = value.as_str().and_then(|text| words.iter().find(|(word, _)| *word == text));
        if known.is_none() {
            let names: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            let given = value.as_str().map_or_else(|| value.to_string(), |text| format!("`{text}`"));
            self.error(section.path(field), format!("is {given}; it must be {}", names.join(" or ")));
        }
        known.map_or(0, |(_, number)| *number)
    }

    // === unknown fields ===

    fn unknown_fields(&mut self, section: &Section<'_>) {
        let known =
            SECTIONS.iter().find(|(path, _)| *path == section.path).map_or(&[][..], |(_, fields)| fields);
        self.unknown_in(section, known);
    }

    fn unknown_in(&mut self, section: &Section<'_>, known: &[&str]) {
        let place =
            if section.path.is_empty() { "a job file".to_owned() } else { format!("`{}`", section.path) };
        for field in section.fields.keys().filter(|field| !known.contains(&field.as_str())) {
            let hint = match suggestion(field, known) {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("its fields are {}", known.join(", ")),
            };
            self.error(section.path(field), format!("is not a field of {place}; {hint}"));
        }
    }
}

/// The field that was probably meant: the nearest name beside it, or the same name in another section.
fn suggestion(field: &str, known: &[&str]) -> Option<String> {
    let near = known
        .iter()
        .map(|name| (strsim::jaro_winkler(field, name), *name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(similarity, _)| *similarity > 0.8);
    let elsewhere = || {
        let (section, _) =
            SECTIONS.iter().find(|(path, fields)| !path.is_empty() && fields.contains(&field))?;
        Some(join(section, field))
    };
    let top =
        || SECTIONS[0].1.contains(&field).then(|| format!("{field}` at the top of the file, not `{field}"));
    near.map(|(_, name)| name.to_owned()).or_else(elsewhere).or_else(top)
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
