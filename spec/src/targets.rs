//! Which modules get an adapter, of which rank and scale, and which are trained whole: PEFT's rules.

mod choose;
mod rule;
mod saved;

use std::fmt::Write as _;

use crate::{
    base::BaseShape,
    job::{AdapterSpec, FieldError, Method},
};

pub use rule::{ALL_LINEAR, TargetRule, check_pattern};
pub use saved::{Saved, saved, saved_made};

use choose::{Candidate, Chooser};
use rule::Patterns;

/// What kind of module gets an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    /// A linear layer.
    Linear,
    /// The embedding of tokens: a linear layer whose input is one-hot.
    Embedding,
}

/// One module that gets an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The module's whole name: `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// What it is.
    pub kind: TargetKind,
    /// Width of its input (an embedding's rows): A is rank × in_features.
    pub in_features: usize,
    /// Width of its output: B is out_features × rank.
    pub out_features: usize,
    /// The rank there.
    pub rank: usize,
    /// The alpha there.
    pub alpha: f64,
    /// What the adapter's output is multiplied by: alpha / rank, or alpha / sqrt(rank) with rsLoRA.
    pub scale: f64,
    /// It has a magnitude of `out_features` values (DoRA).
    pub magnitude: bool,
}

impl Target {
    /// Parameters of its A and B, and of its magnitude.
    pub fn parameters(&self) -> u64 {
        let magnitude = if self.magnitude { self.out_features } else { 0 };
        (self.rank * (self.in_features + self.out_features) + magnitude) as u64
    }
}

/// What a name that matches nothing, or a rank that is larger than a module, means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Care {
    /// A mistake: a job would silently train less than was asked for.
    Job,
    /// What PEFT lets pass.
    Peft,
}

/// The modules of a base that a job's adapter trains, in the order of the modules; none in full fine-tuning.
///
/// # Errors
/// Every reason why the adapter does not fit the base: a name or pattern that matches nothing (with what exists), a layer
/// index beyond the last, a rank larger than a layer's smaller side, a target that is trained whole, nothing left to train.
pub fn resolve(adapter: &AdapterSpec, shape: &BaseShape) -> Result<Vec<Target>, Vec<FieldError>> {
    resolve_with(adapter, shape, Care::Job)
}

/// The same for an adapter that PEFT may have made: names that match nothing and large ranks pass, as they do there.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_made(adapter: &AdapterSpec, shape: &BaseShape) -> Result<Vec<Target>, Vec<FieldError>> {
    resolve_with(adapter, shape, Care::Peft)
}

fn resolve_with(
    adapter: &AdapterSpec,
    shape: &BaseShape,
    care: Care,
) -> Result<Vec<Target>, Vec<FieldError>> {
    if adapter.method == Method::Full {
        return Ok(Vec::new());
    }
    let saved = saved::saved_with(adapter, shape, care)?;
    let mut errors = Vec::new();
    let chosen = match Chooser::new(adapter, shape, &saved, care) {
        Ok(chooser) => chooser.choose(&mut errors),
        Err(error) => return Err(vec![error]),
    };
    let mut ranks = Patterns::new(&adapter.rank_pattern, "adapter.rank_pattern", &mut errors);
    let mut alphas = Patterns::new(&adapter.alpha_pattern, "adapter.alpha_pattern", &mut errors);
    let mut targets = Vec::with_capacity(chosen.len());
    for candidate in chosen {
        let (rank_path, rank) =
            ranks.get(candidate.name, &mut errors).unwrap_or(("adapter.rank".into(), adapter.rank));
        let (_, alpha) =
            alphas.get(candidate.name, &mut errors).unwrap_or_else(|| (String::new(), adapter.alpha));
        let side = candidate.in_features.min(candidate.out_features);
        if rank as usize > side && care == Care::Job {
            let message = format!("is {rank}, larger than the smaller side of {} ({side})", candidate.name);
            errors.push(FieldError::new(rank_path, message));
        }
        targets.push(target(adapter, &candidate, rank, alpha));
    }
    if care == Care::Job && errors.is_empty() {
        errors.extend(ranks.unused().chain(alphas.unused()));
    }
    if errors.is_empty() { Ok(targets) } else { Err(merge(errors)) }
}

fn target(adapter: &AdapterSpec, candidate: &Candidate<'_>, rank: u32, alpha: f64) -> Target {
    let divisor = if adapter.rslora { f64::from(rank).sqrt() } else { f64::from(rank) };
    Target {
        module: candidate.name.to_owned(),
        kind: candidate.kind(),
        in_features: candidate.in_features,
        out_features: candidate.out_features,
        rank: rank as usize,
        alpha,
        scale: alpha / divisor,
        magnitude: adapter.method == Method::Dora,
    }
}

/// One error for each path: a rank too large for one layer is too large for its likes in every other block.
fn merge(errors: Vec<FieldError>) -> Vec<FieldError> {
    let mut merged: Vec<(FieldError, usize)> = Vec::new();
    for error in errors {
        match merged.iter_mut().find(|(known, _)| known.path == error.path) {
            Some((_, more)) => *more += 1,
            None => merged.push((error, 0)),
        }
    }
    merged
        .into_iter()
        .map(|(mut error, more)| {
            if more > 0 {
                let _ = write!(error.message, "; and {more} more like this");
            }
            error
        })
        .collect()
}

#[cfg(test)]
mod tests;
