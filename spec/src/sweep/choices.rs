//! What each parameter of a sweep may be.

use std::collections::HashSet;

use lorafleet_proto::v1::{self as pb, sweep_parameter::Choices as Given};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::{
    draw::{rounded, unit},
    field::Template,
};
use crate::{job::FieldError, sampler::below};

/// Values that one parameter may list.
const MAX_VALUES: usize = 10_000;

/// Fields that all children share, and why.
const SHARED: &[(&str, &str)] = &[
    ("name", "children are named after the sweep"),
    ("base", "children share the base: make a sweep for each"),
    ("action", "children do the same: make a sweep for each"),
    ("task", "children share the task: make a sweep for each"),
    ("data", "children share the data: make a sweep for each"),
    ("data.train", "children share the data: make a sweep for each"),
    ("data.eval", "children share the data, or their losses could not be compared"),
    ("data.columns", "children share the data: make a sweep for each"),
    ("data.labels", "children share the data: make a sweep for each"),
    ("adapter.start", "children share what is uploaded: make a sweep for each"),
    ("tenant", "children belong to one tenant"),
];

/// One field that differs between children.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parameter {
    /// As in the job file: `adapter.rank`.
    pub path: String,
    pub choices: Choices,
}

/// What a field may be, never nothing.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Choices {
    List(Vec<Value>),
    Range { first: i64, step: u64, count: u64 },
    Uniform { low: f64, high: f64 },
    LogUniform { low: f64, high: f64 },
}

/// Reads and checks all parameters of a sweep: each names a field of a job, and each of its values can stand there.
pub(super) fn read(sweep: &pb::SweepSpec, template: &Template) -> Result<Vec<Parameter>, Vec<FieldError>> {
    if sweep.parameters.is_empty() {
        let message = "is empty: name the fields to try and what each may be, like `train.lr: [1e-3, 1e-4]`";
        return Err(vec![FieldError::new("sweep.parameters", message)]);
    }
    let (mut parameters, mut errors, mut paths) = (Vec::new(), Vec::new(), HashSet::new());
    for given in &sweep.parameters {
        let parameter = match parameter(given) {
            Ok(parameter) => parameter,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        if !paths.insert(parameter.path.clone()) {
            errors.push(FieldError::new(parameter.field(), "is given twice; make one list of its values"));
        }
        errors.extend(parameter.samples().iter().find_map(|value| misfit(&parameter, value, template)));
        parameters.push(parameter);
    }
    if paths.contains("train.steps") && paths.contains("train.epochs") {
        errors.push(FieldError::new(
            "sweep.parameters.train.steps",
            "is given beside `train.epochs`; keep one of them",
        ));
    }
    if errors.is_empty() { Ok(parameters) } else { Err(errors) }
}

/// What keeps a value from standing in a parameter's field.
fn misfit(parameter: &Parameter, value: &Value, template: &Template) -> Option<FieldError> {
    let path = parameter.path.as_str();
    let error = |value| template.with([(path, value)]).err()?.into_iter().next();
    // Nothing can stand in every field that there is.
    let (error, value) = match error(&Value::Null) {
        Some(error) => (error, String::new()),
        None => (error(value)?, format!("{value}: ")),
    };
    let message = match error.path == path {
        true => format!("{value}{}", error.message),
        false => format!("{value}{error}"),
    };
    Some(FieldError::new(parameter.field(), message))
}

fn parameter(given: &pb::SweepParameter) -> Result<Parameter, FieldError> {
    let path = given.path.clone();
    let wrong = |message: String| FieldError::new(format!("sweep.parameters.{path}"), message);
    if let Some((_, why)) = SHARED.iter().find(|(shared, _)| *shared == path) {
        return Err(wrong(format!("cannot differ: {why}")));
    }
    let choices = match &given.choices {
        None => Err("has no choices: give a list of values, a range or a span".to_owned()),
        Some(Given::Values(values)) => list(&values.json),
        Some(Given::Range(range)) => whole_numbers(range),
        Some(Given::Uniform(span)) => numbers(span).map(|(low, high)| Choices::Uniform { low, high }),
        Some(Given::LogUniform(span)) => numbers(span).and_then(|(low, high)| match low > 0.0 {
            true => Ok(Choices::LogUniform { low, high }),
            false => Err(format!("begins at {low}; a span of logarithms begins above 0")),
        }),
    };
    choices.map(|choices| Parameter { path: path.clone(), choices }).map_err(wrong)
}

fn list(json: &[String]) -> Result<Choices, String> {
    if json.is_empty() {
        return Err("is an empty list; give one value or more".to_owned());
    }
    if json.len() > MAX_VALUES {
        return Err(format!("lists {} values; {MAX_VALUES} are allowed", json.len()));
    }
    let mut seen = HashSet::new();
    let read = json.iter().map(|text| {
        let value: Value =
            serde_json::from_str(text).map_err(|error| format!("{text} is not JSON: {error}"))?;
        if value.is_null() {
            return Err("lists nothing (null); write the value that the field has by default".to_owned());
        }
        match seen.insert(value.to_string()) {
            true => Ok(value),
            false => Err(format!("lists {value} twice")),
        }
    });
    read.collect::<Result<_, _>>().map(Choices::List)
}

fn whole_numbers(range: &pb::SweepRange) -> Result<Choices, String> {
    let (first, last, step) = (range.first, range.last, range.step.max(1));
    if last < first {
        return Err(format!("ranges from {first} to {last}: the last number is below the first"));
    }
    let count = last.abs_diff(first) / step;
    Ok(Choices::Range { first, step, count: count.saturating_add(1) })
}

fn numbers(span: &pb::SweepSpan) -> Result<(f64, f64), String> {
    let (low, high) = (span.low, span.high);
    match low.is_finite() && high.is_finite() && low < high {
        true => Ok((low, high)),
        false => Err(format!("spans {low} to {high}: the second number must be above the first")),
    }
}

// === impl Parameter ===

impl Parameter {
    /// Its own path in the sweep file.
    pub fn field(&self) -> String {
        format!("sweep.parameters.{}", self.path)
    }

    /// Values of which each must fit the field: all that are listed, or the ends.
    fn samples(&self) -> Vec<Value> {
        match &self.choices {
            Choices::List(values) => values.clone(),
            Choices::Range { count, .. } => vec![self.choices.nth(0), self.choices.nth(count - 1)],
            Choices::Uniform { low, high } | Choices::LogUniform { low, high } => {
                vec![Value::from(*low), Value::from(*high)]
            }
        }
    }
}

// === impl Choices ===

impl Choices {
    /// How many there are; none for a span.
    pub fn count(&self) -> Option<u64> {
        match self {
            Self::List(values) => Some(values.len() as u64),
            Self::Range { count, .. } => Some(*count),
            Self::Uniform { .. } | Self::LogUniform { .. } => None,
        }
    }

    /// The one at a place, from 0; of a span its beginning.
    pub fn nth(&self, place: u64) -> Value {
        match self {
            Self::List(values) => {
                values.get(usize::try_from(place).unwrap_or(usize::MAX)).cloned().unwrap_or_default()
            }
            // No overflow: the place is below the count, which was worked out from the last number.
            Self::Range { first, step, .. } => {
                Value::from(first.saturating_add_unsigned(place.saturating_mul(*step)))
            }
            Self::Uniform { low, .. } | Self::LogUniform { low, .. } => Value::from(*low),
        }
    }

    /// One of them.
    pub fn draw(&self, generator: &mut ChaCha8Rng) -> Value {
        match self {
            Self::List(_) | Self::Range { .. } => {
                let count = self.count().unwrap_or(1);
                self.nth(below(generator, count))
            }
            Self::Uniform { low, high } => within(low + unit(generator) * (high - low), *low, *high),
            Self::LogUniform { low, high } => {
                let (from, to) = (libm::log(*low), libm::log(*high));
                within(libm::exp(from + unit(generator) * (to - from)), *low, *high)
            }
        }
    }
}

/// Rounded to what people read, but never out of the span.
fn within(number: f64, low: f64, high: f64) -> Value {
    Value::from(rounded(number).clamp(low, high))
}
