//! Where a sweep compares its children, and whether their jobs can be compared there.

use lorafleet_proto::v1::{self as pb, halving::Every, train_spec::Length};

use super::Child;
use crate::job::FieldError;

/// The part that goes on unless the sweep says another.
const KEEP: f64 = 0.5;

/// Successive halving: at each rung the worse part of the children that reached it is ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rungs {
    /// Steps from one rung to the next; every job is evaluated at each.
    pub steps: u64,
    /// The part that goes on, in (0, 1).
    pub keep: f64,
    /// At each rung at least so many go on, at least 1.
    pub min_children: u32,
}

/// Reads and checks the halving of a sweep over these children.
pub(super) fn read(sweep: &pb::SweepSpec, children: &[Child]) -> Result<Option<Rungs>, Vec<FieldError>> {
    let Some(halving) = &sweep.halving else { return Ok(None) };
    let mut errors = Vec::new();
    let mut wrong = |field: &str, message: String| {
        let path =
            if field.is_empty() { "sweep.halving".to_owned() } else { format!("sweep.halving.{field}") };
        errors.push(FieldError::new(path, message));
    };
    let keep = if halving.keep == 0.0 { KEEP } else { halving.keep };
    if !(keep > 0.0 && keep < 1.0) {
        wrong("keep", format!("is {keep}; the part that goes on must be above 0 and below 1"));
    }
    let min_children = halving.min_children.max(1);
    if min_children as usize >= children.len() {
        wrong(
            "min_children",
            format!("is {min_children} of {} children: none would ever be ended", children.len()),
        );
    }
    if children.iter().any(|child| child.spec.data.as_ref().is_none_or(|data| data.eval.is_empty())) {
        wrong("", "needs data.eval: children are compared by their evaluation loss".to_owned());
    }
    let steps = match steps(halving, children) {
        Ok(steps) => steps,
        Err(message) => {
            wrong("every", message);
            0
        }
    };
    if steps > 0 && children.iter().all(|child| length(child).is_some_and(|length| length <= steps)) {
        wrong("every", format!("puts the first rung at step {steps}, where every child has ended"));
    }
    if errors.is_empty() { Ok(Some(Rungs { steps, keep, min_children })) } else { Err(errors) }
}

/// Steps from one rung to the next.
fn steps(halving: &pb::Halving, children: &[Child]) -> Result<u64, String> {
    let evals = || children.iter().map(|child| child.spec.eval.as_ref().map_or(0, |eval| eval.every));
    let eval = evals().next().unwrap_or(0);
    if eval == 0 || evals().any(|every| every == 0) {
        return Err("needs evaluations during training, but eval.every is 0".to_owned());
    }
    match halving.every {
        None | Some(Every::Evaluations(0) | Every::Steps(0)) => {
            Err("must be at least 1, like `1 evaluations` or `100 steps`".to_owned())
        }
        Some(Every::Evaluations(_)) if evals().any(|every| every != eval) => {
            Err("counts evaluations, but eval.every differs between children: give a number of steps"
                .to_owned())
        }
        Some(Every::Evaluations(count)) => {
            count.checked_mul(eval).ok_or_else(|| format!("is {count} evaluations, more than a job can have"))
        }
        Some(Every::Steps(steps)) => match evals().find(|every| steps % every != 0) {
            Some(every) => Err(format!(
                "is {steps} steps, but evaluations are made every {every}: give a multiple of eval.every"
            )),
            None => Ok(steps),
        },
    }
}

/// Steps of a child that says them.
fn length(child: &Child) -> Option<u64> {
    match child.spec.train.as_ref().and_then(|train| train.length) {
        Some(Length::Steps(steps)) => Some(steps),
        Some(Length::Epochs(_)) | None => None,
    }
}
