//! Sweeps: one job file and a list of choices become many jobs, the same ones wherever that is worked out.

mod choices;
mod draw;
mod field;
mod halving;
mod yaml;

use std::collections::HashSet;

use lorafleet_proto::v1 as pb;
use serde_json::Value;

use self::{choices::Parameter, field::Template};
use crate::job::{FieldError, Job, fill_defaults};

pub use halving::Rungs;
pub use yaml::{SweepFile, parse_sweep};

/// Children that a sweep may have.
pub const MAX_CHILDREN: u32 = 1000;
/// Different mistakes of children that are told; more would not be read.
const MAX_ERRORS: usize = 20;
/// Longest name of a job.
const MAX_NAME: usize = 63;
/// Draws of one child that may repeat an earlier child's before the choices are taken to be used up.
const MAX_REDRAWS: u64 = 100_000;

/// A sweep worked out: what is stored when it is submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// In their order, at least one.
    pub children: Vec<Child>,
    /// Where bad children are ended early, if they are.
    pub rungs: Option<Rungs>,
}

/// One job of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct Child {
    /// Its place, from 1.
    pub index: u32,
    /// What it has of its own, in the sweep's order of parameters.
    pub settings: Vec<pb::SweepSetting>,
    /// The whole job, with every default filled in.
    pub spec: pb::JobSpec,
}

impl Child {
    /// What it has of its own, as people read it: `adapter.rank=8, train.lr=0.001`.
    pub fn describe(&self) -> String {
        describe(&self.settings)
    }
}

/// Settings as people read them: `adapter.rank=8, train.lr=0.001`.
pub fn describe(settings: &[pb::SweepSetting]) -> String {
    let one = |setting: &pb::SweepSetting| format!("{}={}", setting.path, setting.json);
    settings.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Works out the children of a sweep: `spec` is what they have in common, without defaults, since those of a child may
/// depend on its own fields. Every child is a valid [`Job`].
///
/// # Errors
/// Everything that is wrong with the sweep (paths begin with `sweep.`); when that is in order, everything that is wrong
/// with a child, each with the child's settings. A sweep of too many children is refused by arithmetic.
pub fn expand(spec: &pb::JobSpec, sweep: &pb::SweepSpec) -> Result<Sweep, Vec<FieldError>> {
    let template = Template::new(spec).map_err(|error| vec![error])?;
    let parameters = choices::read(sweep, &template)?;
    let rows = if sweep.samples == 0 { grid(&parameters)? } else { random(&parameters, sweep)? };
    let mut mistakes = Mistakes::default();
    let mut children = Vec::with_capacity(rows.len());
    for (index, row) in (1..).zip(&rows) {
        let settings = settings(&parameters, row);
        let mut child =
            match template.with(parameters.iter().map(|parameter| parameter.path.as_str()).zip(row)) {
                Ok(spec) => Child { index, settings, spec },
                Err(errors) => {
                    mistakes.of_child(errors, index, &settings);
                    continue;
                }
            };
        fill_defaults(&mut child.spec);
        child.spec.display_name = child_name(&child.spec.display_name, index, rows.len());
        if let Err(errors) = Job::try_from(&child.spec) {
            mistakes.of_child(errors, index, &child.settings);
        }
        children.push(child);
    }
    mistakes.none()?;
    let rungs = halving::read(sweep, &children)?;
    Ok(Sweep { children, rungs })
}

/// Mistakes of children, each told once with the first child that has it.
#[derive(Debug, Default)]
pub struct Mistakes(Vec<(FieldError, String, usize)>);

impl Mistakes {
    /// Adds what is wrong with one child.
    pub fn of_child(&mut self, errors: Vec<FieldError>, index: u32, settings: &[pb::SweepSetting]) {
        for error in errors {
            let full = self.0.len() >= MAX_ERRORS;
            match self.0.iter_mut().find(|(known, ..)| *known == error) {
                Some((_, _, count)) => *count += 1,
                None if !full => {
                    self.0.push((error, format!("child {index}: {}", describe(settings)), 1));
                }
                None => {}
            }
        }
    }

    /// # Errors
    /// What was added, if anything was.
    pub fn none(self) -> Result<(), Vec<FieldError>> {
        let told = |(error, child, count): (FieldError, String, usize)| {
            let more = if count > 1 { format!("; and {} more", count - 1) } else { String::new() };
            FieldError::new(error.path, format!("{} ({child}{more})", error.message))
        };
        if self.0.is_empty() { Ok(()) } else { Err(self.0.into_iter().map(told).collect()) }
    }
}

fn settings(parameters: &[Parameter], row: &[Value]) -> Vec<pb::SweepSetting> {
    let one = |(parameter, value): (&Parameter, &Value)| pb::SweepSetting {
        path: parameter.path.clone(),
        json: value.to_string(),
    };
    parameters.iter().zip(row).map(one).collect()
}

/// Every combination; the last parameter changes fastest.
fn grid(parameters: &[Parameter]) -> Result<Vec<Vec<Value>>, Vec<FieldError>> {
    let endless =
        parameters.iter().filter(|parameter| parameter.choices.count().is_none()).map(|parameter| {
            let message =
                "is a span, of which a grid cannot have every number: give `sweep.samples`, or list numbers";
            FieldError::new(parameter.field(), message)
        });
    let endless: Vec<_> = endless.collect();
    if !endless.is_empty() {
        return Err(endless);
    }
    let counts: Vec<u64> = parameters.iter().filter_map(|parameter| parameter.choices.count()).collect();
    let total = counts.iter().fold(1u128, |total, &count| total.saturating_mul(u128::from(count)));
    if total > u128::from(MAX_CHILDREN) {
        let factors: Vec<_> = counts.iter().map(ToString::to_string).collect();
        let product = if counts.len() > 1 { format!(" ({})", factors.join(" × ")) } else { String::new() };
        let message = format!(
            "would make {total} children{product}; a sweep may have {MAX_CHILDREN}: leave choices out, or draw some \
             combinations with `sweep.samples`"
        );
        return Err(vec![FieldError::new("sweep.parameters", message)]);
    }
    let total = u64::try_from(total).unwrap_or(u64::MAX);
    let row = |place: u64| {
        let mut rest = place;
        let mut row: Vec<Value> = parameters
            .iter()
            .zip(&counts)
            .rev()
            .map(|(parameter, &count)| {
                let value = parameter.choices.nth(rest % count);
                rest /= count;
                value
            })
            .collect();
        row.reverse();
        row
    };
    Ok((0..total).map(row).collect())
}

/// So many different combinations, each drawn by (seed, child, parameter) alone.
fn random(parameters: &[Parameter], sweep: &pb::SweepSpec) -> Result<Vec<Vec<Value>>, Vec<FieldError>> {
    let wrong = |message: String| Err(vec![FieldError::new("sweep.samples", message)]);
    if sweep.samples > MAX_CHILDREN {
        return wrong(format!("is {}; a sweep may have {MAX_CHILDREN} children", sweep.samples));
    }
    let counts: Option<Vec<u64>> = parameters.iter().map(|parameter| parameter.choices.count()).collect();
    let all = counts.map(|counts| counts.iter().fold(1u128, |all, &n| all.saturating_mul(u128::from(n))));
    if let Some(all) = all.filter(|all| *all < u128::from(sweep.samples)) {
        return wrong(format!(
            "is {}, but there are only {all} combinations: leave it out, and each is tried",
            sweep.samples
        ));
    }
    let mut seen = HashSet::new();
    let mut rows = Vec::new();
    for child in 1..=sweep.samples {
        let drawn = (0..MAX_REDRAWS).find_map(|redraw| {
            let draw = |parameter: &Parameter| {
                parameter.choices.draw(&mut draw::generator(sweep.seed, &parameter.path, child, redraw))
            };
            let row: Vec<Value> = parameters.iter().map(draw).collect();
            let text = row.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
            seen.insert(text).then_some(row)
        });
        match drawn {
            Some(row) => rows.push(row),
            None => {
                return wrong(format!(
                    "is {}, but the choices make fewer children that differ",
                    sweep.samples
                ));
            }
        }
    }
    Ok(rows)
}

/// The sweep's name and the child's number, as wide as the last one's.
fn child_name(name: &str, index: u32, children: usize) -> String {
    let width = children.to_string().len();
    let number = format!("-{index:0width$}");
    // Names are ASCII; one that is not is told as a mistake, and must not end the program here.
    let cut = (0..=name.len().min(MAX_NAME - number.len())).rev().find(|&cut| name.is_char_boundary(cut));
    format!("{}{number}", &name[..cut.unwrap_or(0)])
}

#[cfg(test)]
mod tests;
