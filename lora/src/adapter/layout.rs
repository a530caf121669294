//! From an adapter's specification and a base's shape to the places of everything that is trained.

use lorafleet_spec::base::BaseShape;
use lorafleet_spec::job::{AdapterSpec, FieldError};
use lorafleet_spec::targets::{self, Saved, Target, TargetKind};

use super::AdapterError;
use crate::params::{Layout, ModuleKind, ModuleSpec};

/// The layout of a job's adapter, or of all tensors of the base in full fine-tuning: adapted modules in the order of the
/// modules, then whole tensors in theirs.
///
/// # Errors
/// When the adapter does not fit the base, with all reasons.
pub fn of_job(adapter: &AdapterSpec, shape: &BaseShape) -> Result<Layout, AdapterError> {
    lay_out(targets::resolve(adapter, shape), targets::saved(adapter, shape))
}

/// The same of an adapter that PEFT may have made, where names that match nothing and large ranks pass.
///
/// # Errors
/// As [`of_job`].
pub fn of_made(adapter: &AdapterSpec, shape: &BaseShape) -> Result<Layout, AdapterError> {
    lay_out(targets::resolve_made(adapter, shape), targets::saved_made(adapter, shape))
}

fn lay_out(
    targets: Result<Vec<Target>, Vec<FieldError>>,
    saved: Result<Saved, Vec<FieldError>>,
) -> Result<Layout, AdapterError> {
    let error = |errors: Vec<FieldError>| {
        let reasons: Vec<String> = errors.iter().map(ToString::to_string).collect();
        AdapterError::Targets(reasons.join("; "))
    };
    let mut layout = Layout::new();
    for target in targets.map_err(error)? {
        layout.push_module(&ModuleSpec {
            module: &target.module,
            kind: match target.kind {
                TargetKind::Linear => ModuleKind::Linear,
                TargetKind::Embedding => ModuleKind::Embedding,
            },
            in_features: target.in_features,
            out_features: target.out_features,
            rank: target.rank,
            scale: target.scale as f32,
            magnitude: target.magnitude,
        });
    }
    for (name, sizes) in saved.map_err(error)?.tensors {
        layout.push_whole(&name, &sizes);
    }
    Ok(layout)
}
