//! The sweep file: a job file with a section `sweep`.

use lorafleet_proto::v1::{self as pb, halving::Every, sweep_parameter::Choices};
use serde_json::{Map, Value};

use crate::job::{FieldError, parse_root, read_fields};

/// Fields of the section.
const FIELDS: &[&str] = &["parameters", "samples", "seed", "halving"];
/// Fields of `halving`.
const HALVING: &[&str] = &["every", "keep", "min_children"];

/// A sweep file, read.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepFile {
    /// What the children have in common, as the file says it: without defaults.
    pub spec: pb::JobSpec,
    /// What differs.
    pub sweep: pb::SweepSpec,
    /// The job file without the section, which is a job file of its own.
    pub job_file: String,
}

/// Reads a sweep file. That its children are valid is for [`expand`](super::expand) to say.
///
/// # Errors
/// Everything that is wrong with its form.
///
/// ```
/// let file = "base: ./base\ndata: {train: t.jsonl}\nsweep: {parameters: {adapter.rank: [8, 16]}}";
/// let file = lorafleet_spec::sweep::parse_sweep(file).expect("a sweep file");
/// let sweep = lorafleet_spec::sweep::expand(&file.spec, &file.sweep).expect("a sweep");
/// assert_eq!(sweep.children[1].describe(), "adapter.rank=16");
/// ```
pub fn parse_sweep(text: &str) -> Result<SweepFile, Vec<FieldError>> {
    let mut root = parse_root(text).map_err(|message| vec![FieldError::new("", message)])?;
    let section = root.remove("sweep");
    let (spec, mut errors) = read_fields(&root);
    let mut reader = Reader { errors: Vec::new() };
    let sweep = match &section {
        Some(Value::Object(fields)) => reader.sweep(fields),
        Some(Value::Null) | None => {
            reader.error("sweep", "is missing: it says what to try; a job file without it is for `submit`");
            pb::SweepSpec::default()
        }
        Some(_) => {
            reader.error("sweep", "must be fields with values");
            pb::SweepSpec::default()
        }
    };
    errors.extend(reader.errors);
    let job_file = Value::Object(root).to_string();
    if errors.is_empty() { Ok(SweepFile { spec, sweep, job_file }) } else { Err(errors) }
}

struct Reader {
    errors: Vec<FieldError>,
}

impl Reader {
    fn error(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.errors.push(FieldError::new(path, message));
    }

    fn unknown(&mut self, path: &str, fields: &Map<String, Value>, known: &[&str]) {
        for field in fields.keys().filter(|field| !known.contains(&field.as_str())) {
            let near = known.iter().find(|name| strsim::jaro_winkler(field, name) > 0.8);
            let hint = match near {
                Some(name) => format!("did you mean `{name}`?"),
                None if field.contains('.') => "fields of the job stand in `sweep.parameters`".to_owned(),
                None => format!("its fields are {}", known.join(", ")),
            };
            self.error(format!("{path}.{field}"), format!("is not a field of `{path}`; {hint}"));
        }
    }

    fn sweep(&mut self, fields: &Map<String, Value>) -> pb::SweepSpec {
        self.unknown("sweep", fields, FIELDS);
        let mut parameters = Vec::new();
        match fields.get("parameters") {
            Some(Value::Object(given)) => {
                parameters.extend(given.iter().filter_map(|(path, value)| self.parameter(path, value)));
                // By path, so that the order of children does not depend on how the file was read.
                parameters.sort_by(|a, b| a.path.cmp(&b.path));
            }
            Some(Value::Null) | None => {}
            Some(_) => self
                .error("sweep.parameters", "must be field paths with choices, like `adapter.rank: [8, 16]`"),
        }
        let samples = self.whole("sweep.samples", fields.get("samples"), 1).unwrap_or_default();
        pb::SweepSpec {
            parameters,
            samples: u32::try_from(samples).unwrap_or(u32::MAX),
            seed: self.whole("sweep.seed", fields.get("seed"), 0).unwrap_or_default(),
            halving: self.halving(fields.get("halving")),
        }
    }

    fn parameter(&mut self, path: &str, value: &Value) -> Option<pb::SweepParameter> {
        let field = format!("sweep.parameters.{path}");
        let choices = match value {
            Value::Array(values) => {
                Choices::Values(pb::SweepValues { json: values.iter().map(Value::to_string).collect() })
            }
            Value::Object(kind) if kind.len() == 1 => {
                let (kind, ends) = kind.iter().next()?;
                self.span(&field, kind, ends)?
            }
            _ => {
                self.error(
                    field,
                    "must be a list of values, {range: [0, 5]}, {uniform: [0, 0.1]} or {log_uniform: [1e-5, 1e-3]}",
                );
                return None;
            }
        };
        Some(pb::SweepParameter { path: path.to_owned(), choices: Some(choices) })
    }

    fn span(&mut self, field: &str, kind: &str, ends: &Value) -> Option<Choices> {
        let ends = ends.as_array().map(Vec::as_slice).unwrap_or_default();
        let number = |value: &Value| value.as_f64().filter(|number| number.is_finite());
        let choices = match (kind, ends) {
            ("range", [first, last, step @ ..]) if step.len() <= 1 => {
                let step = step.first().map_or(Some(1), Value::as_u64).filter(|step| *step > 0);
                let ends = (first.as_i64(), last.as_i64(), step);
                if let (Some(first), Some(last), Some(step)) = ends {
                    Some(Choices::Range(pb::SweepRange { first, last, step }))
                } else {
                    None
                }
            }
            ("uniform" | "log_uniform", [low, high]) => {
                number(low).zip(number(high)).map(|(low, high)| match kind {
                    "uniform" => Choices::Uniform(pb::SweepSpan { low, high }),
                    _ => Choices::LogUniform(pb::SweepSpan { low, high }),
                })
            }
            _ => None,
        };
        if choices.is_none() {
            let message = match kind {
                "range" => "must be {range: [first, last]} or {range: [first, last, step]}, of whole numbers",
                "uniform" | "log_uniform" => "must be two numbers, the first below the second",
                _ => "knows `range`, `uniform` and `log_uniform`, or a list of values",
            };
            self.error(field, message);
        }
        choices
    }

    fn halving(&mut self, value: Option<&Value>) -> Option<pb::Halving> {
        let fields = match value? {
            Value::Object(fields) => fields,
            Value::Null => return None,
            _ => {
                self.error(
                    "sweep.halving",
                    "must be fields with values, like {every: 1 evaluations, keep: 0.5}",
                );
                return None;
            }
        };
        self.unknown("sweep.halving", fields, HALVING);
        let keep = fields.get("keep").map(|value| value.as_f64().filter(|keep| *keep > 0.0 && *keep < 1.0));
        if keep == Some(None) {
            self.error("sweep.halving.keep", "must be a number above 0 and below 1: the part that goes on");
        }
        let min = self.whole("sweep.halving.min_children", fields.get("min_children"), 1).unwrap_or_default();
        Some(pb::Halving {
            every: self.every(fields.get("every")),
            keep: keep.flatten().unwrap_or_default(),
            min_children: u32::try_from(min).unwrap_or(u32::MAX),
        })
    }

    /// `2`, `2 evaluations` or `100 steps`.
    fn every(&mut self, value: Option<&Value>) -> Option<Every> {
        let text = match value {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            None => "1".to_owned(),
            Some(_) => String::new(),
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        let count = words.first().and_then(|word| word.parse::<u64>().ok()).filter(|count| *count > 0);
        let every = match (count, &words[1.min(words.len())..]) {
            (Some(count), [] | ["evaluation" | "evaluations"]) => Some(Every::Evaluations(count)),
            (Some(count), ["step" | "steps"]) => Some(Every::Steps(count)),
            _ => None,
        };
        if every.is_none() {
            self.error("sweep.halving.every", "must be like `1 evaluations` or `100 steps`");
        }
        every
    }

    fn whole(&mut self, path: &str, value: Option<&Value>, min: u64) -> Option<u64> {
        let value = value.filter(|value| !value.is_null())?;
        let number = value.as_u64().filter(|number| *number >= min);
        if number.is_none() {
            self.error(path, format!("is {value}; it must be a whole number, at least {min}"));
        }
        number
    }
}
