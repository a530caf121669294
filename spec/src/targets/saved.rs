//! Which tensors of a base are trained whole: modules to save, new heads, or everything.

use std::collections::BTreeSet;

use super::Care;
use crate::{
    base::{BaseShape, EmbeddingRole, HeadShape, Role},
    job::{AdapterSpec, FieldError, Method},
};

/// What PEFT saves of every model that classifies, whatever a job says.
const HEADS: [&str; 2] = ["classifier", "score"];

/// What is trained whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// `modules_to_save` as adapter_config.json says it: what the job names, PEFT's heads, and what is fresh; empty in full
    /// fine-tuning, which has no adapter.
    pub entries: Vec<String>,
    /// The tensors with their shapes as stored, in the order of the modules.
    pub tensors: Vec<(String, Vec<usize>)>,
}

impl Saved {
    /// Parameters of all the tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|(_, shape)| shape.iter().map(|n| *n as u64).product::<u64>()).sum()
    }

    /// Whether a linear layer or embedding is trained whole.
    pub(super) fn has_module(&self, module: &str) -> bool {
        let is_weight = |name: &str| name.strip_suffix(".weight") == Some(module);
        self.tensors.iter().any(|(name, _)| is_weight(name))
    }
}

/// The tensors of a base that a job trains whole.
///
/// # Errors
/// A module to save that the base does not have, or whose weights are tied to another's.
pub fn saved(adapter: &AdapterSpec, shape: &BaseShape) -> Result<Saved, Vec<FieldError>> {
    saved_with(adapter, shape, Care::Job)
}

/// The same for an adapter that PEFT may have made: names that match nothing pass, as they do there.
///
/// # Errors
/// As [`saved`].
pub fn saved_made(adapter: &AdapterSpec, shape: &BaseShape) -> Result<Saved, Vec<FieldError>> {
    saved_with(adapter, shape, Care::Peft)
}

pub(super) fn saved_with(
    adapter: &AdapterSpec,
    shape: &BaseShape,
    care: Care,
) -> Result<Saved, Vec<FieldError>> {
    let tensors = shape.parameter_shapes();
    if adapter.method == Method::Full {
        return Ok(Saved { entries: Vec::new(), tensors });
    }
    let modules = modules(&tensors);
    let mut entries = adapter.modules_to_save.clone();
    check(&entries, shape, &modules, care)?;
    if matches!(shape.head, HeadShape::Classifier { .. }) {
        entries.extend(
            HEADS
                .iter()
                .filter(|head| !adapter.modules_to_save.iter().any(|m| m == *head))
                .map(|h| (*h).to_owned()),
        );
    }
    let fresh = shape.fresh.iter().filter_map(|name| name.rsplit_once('.')).map(|(module, _)| module);
    for module in fresh {
        if !entries.iter().any(|entry| covers(entry, module, &modules)) {
            entries.push(module.to_owned());
        }
    }
    let is_saved = |name: &str| {
        name.rsplit_once('.')
            .is_some_and(|(module, _)| entries.iter().any(|entry| covers(entry, module, &modules)))
    };
    let tensors = tensors.into_iter().filter(|(name, _)| is_saved(name)).collect();
    Ok(Saved { entries, tensors })
}

/// Every module that has parameters, and those that hold it.
fn modules(tensors: &[(String, Vec<usize>)]) -> BTreeSet<String> {
    let dots = |name: &str| name.match_indices('.').map(|(at, _)| at).collect::<Vec<_>>();
    tensors.iter().flat_map(|(name, _)| dots(name).into_iter().map(move |at| name[..at].to_owned())).collect()
}

/// Whether an entry means a module, or one that holds it: PEFT compares the ends of names, not their parts.
fn covers(entry: &str, module: &str, modules: &BTreeSet<String>) -> bool {
    let mut holder = Some(module);
    while let Some(name) = holder {
        if name.ends_with(entry) && modules.contains(name) {
            return true;
        }
        holder = name.rsplit_once('.').map(|(holder, _)| holder);
    }
    false
}

fn check(
    entries: &[String],
    shape: &BaseShape,
    modules: &BTreeSet<String>,
    care: Care,
) -> Result<(), Vec<FieldError>> {
    let head = shape.linear_at(None, Role::Head).filter(|_| shape.tied).map(|head| head.name.as_str());
    let embedding = shape.embedding_at(EmbeddingRole::Tokens).map(|embedding| embedding.name.as_str());
    let tied = |entry: &String| {
        let meant =
            |name: Option<&str>| name.is_some_and(|name| covers(entry, name, &[name.to_owned()].into()));
        meant(head) || (head.is_some() && embedding.is_some_and(|name| covers(entry, name, modules)))
    };
    let exists = |entry: &String| modules.iter().any(|module| module.ends_with(entry.as_str()));
    let mut errors = Vec::new();
    for entry in entries {
        let message = if tied(entry) {
            format!(
                "has {entry:?}, but the base's output head is its token embedding, and one of the two alone cannot be \
                 trained whole. Give it an adapter (`adapter.targets`), or train everything (`adapter.method: full`)"
            )
        } else if care == Care::Job && !HEADS.contains(&entry.as_str()) && !exists(entry) {
            format!("has {entry:?}, which is no module of the base")
        } else {
            continue;
        };
        errors.push(FieldError::new("adapter.modules_to_save", message));
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
