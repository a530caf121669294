//! The summary of a valid job, as people read it.

use std::fmt;

use super::Summary;
use crate::data;

/// Labels that are shown with their counts.
const LABELS_SHOWN: usize = 24;

impl Summary {
    /// What the data sets are: lines of their own, each with its end.
    pub fn data(&self) -> String {
        let mut text = String::new();
        for (name, data) in [("train", Some(&self.train)), ("eval", self.eval.as_ref())] {
            let Some(data) = data else { continue };
            text += &format!(
                "{name:<8} {} examples ({} from {}), {} tokens{}; {} cut off, {} left out\n",
                thousands(data.examples),
                data.format.name(),
                data.container,
                thousands(data.tokens),
                labelled(data),
                thousands(data.truncated),
                thousands(data.skipped)
            );
            text += &labels(data);
        }
        text
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shape, plan) = (&self.shape, &self.plan);
        writeln!(
            f,
            "base     {} with {} parameters: {} layers, hidden {}, vocabulary {}, {} positions",
            shape.family.name,
            thousands(plan.base_parameters),
            shape.layers,
            shape.hidden,
            shape.vocab,
            shape.max_positions
        )?;
        let share = 100.0 * plan.trainable_parameters as f64 / plan.total_parameters as f64;
        let whole = match plan.whole_parameters {
            whole if whole == 0 || whole == plan.trainable_parameters => String::new(),
            whole => format!(", {} of them in modules trained whole", thousands(whole)),
        };
        let trained = thousands(plan.trainable_parameters);
        match self.targets.len() {
            0 => writeln!(f, "trained  {trained} parameters{whole}; {share:.2}% of all")?,
            layers => writeln!(
                f,
                "adapter  {trained} parameters on {layers} linear layers{whole}, {share:.2}% of all"
            )?,
        }
        f.write_str(&self.data())?;
        writeln!(
            f,
            "work     {} steps of about {} tokens and {:.1} GFLOP; {} bytes reduced a step",
            thousands(plan.total_steps),
            thousands(plan.tokens_per_step.round() as u64),
            plan.flops_per_step / 1e9,
            thousands(plan.reduced_bytes)
        )?;
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        write!(
            f,
            "memory   about {} MiB a worker: base {}, adapter {}, activations {}",
            mib(plan.memory.total()),
            mib(plan.memory.base),
            mib(plan.memory.adapter),
            mib(plan.memory.activations)
        )
    }
}

/// The tokens that are learned, where it is tokens.
fn labelled(data: &data::Summary) -> String {
    if data.labels.is_empty() && data.scores.is_none() {
        format!(", {} of them labelled", thousands(data.labelled_tokens))
    } else {
        String::new()
    }
}

/// What the labels are, on a line of its own.
fn labels(data: &data::Summary) -> String {
    if let Some((low, high)) = data.scores {
        return format!("{:<8} scores from {low} to {high}\n", "");
    }
    if data.labels.is_empty() {
        return String::new();
    }
    let shown = data.labels.iter().take(LABELS_SHOWN);
    let shown: Vec<_> = shown.map(|(name, examples)| format!("{name} {}", thousands(*examples))).collect();
    let more = match data.labels.len().saturating_sub(LABELS_SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{:<8} {} labels: {}{more}\n", "", data.labels.len(), shown.join(", "))
}

/// 1234567 as 1,234,567.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
