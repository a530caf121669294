//! Evaluation: sums that may be computed in parts by anyone, in any order, to the same bits.

use lorafleet_spec::base::HeadShape;
use lorafleet_spec::data::{Example, Target};
use lorafleet_spec::metrics::argmax;

use super::{TrainError, Trainer};
use crate::base::Base;
use crate::exact::{from_fixed, to_fixed};
use crate::flops::FlopCounter;
use crate::model::PackedBatch;
use crate::params::AdapterView;

/// Sums of an evaluation; adding them is exact, so the parts may be computed by anyone in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EvalSums {
    /// Sum of the losses, in units of 2^-36: nats, or squared errors of scores.
    pub loss: i64,
    /// What bears a label: tokens, or whole examples with a class or a score.
    pub labelled_tokens: i64,
    /// How often each class was predicted for each true one, `[truth × predicted]` row by row; empty where no classes are
    /// predicted.
    pub confusion: Vec<i64>,
}

/// The evaluation of some examples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvalPart {
    /// Their sums.
    pub sums: EvalSums,
    /// Their predicted scores, in their order; empty where none are predicted.
    pub scores: Vec<f32>,
}

impl EvalSums {
    /// No examples yet, of this many classes (0 where none are predicted).
    pub fn of_classes(classes: usize) -> Self {
        Self { confusion: vec![0; classes * classes], ..Self::default() }
    }

    /// Adds the sums of another part.
    pub fn add(&mut self, other: &EvalSums) {
        self.loss += other.loss;
        self.labelled_tokens += other.labelled_tokens;
        self.confusion.resize(self.confusion.len().max(other.confusion.len()), 0);
        self.confusion.iter_mut().zip(&other.confusion).for_each(|(sum, count)| *sum += count);
    }

    /// Mean loss; nothing without a label.
    pub fn mean_loss(&self) -> Option<f64> {
        (self.labelled_tokens > 0).then(|| from_fixed(self.loss) / self.labelled_tokens as f64)
    }
}

impl Trainer {
    /// [`evaluate`] under the current weights.
    ///
    /// # Errors
    /// When the model refuses the examples, or the loss is not finite.
    pub fn evaluate(&self, examples: &[&Example]) -> Result<EvalPart, TrainError> {
        evaluate(&self.base, &self.view(), &self.flops, examples).map_err(|error| match error {
            TrainError::Loss { loss, .. } => TrainError::Loss { step: self.step(), loss },
            error => error,
        })
    }
}

/// Loss of examples under an adapter, as exact sums; in classification what is predicted for them too.
///
/// The examples go through the model as one batch, and a loss's last bits may depend on its company there: cut the
/// evaluation set by the spec, never by the number of members.
///
/// # Errors
/// When the model refuses the examples, or the loss is not finite.
pub fn evaluate(
    base: &Base,
    adapter: &AdapterView<'_>,
    flops: &FlopCounter,
    examples: &[&Example],
) -> Result<EvalPart, TrainError> {
    let batch = PackedBatch::new(examples)?;
    let HeadShape::Classifier { labels, .. } = &base.shape().head else {
        let sum = base.model().loss(&batch, Some(adapter), flops)?;
        let sums = EvalSums {
            loss: fixed(sum.loss)?,
            labelled_tokens: sum.labelled_tokens as i64,
            confusion: Vec::new(),
        };
        return Ok(EvalPart { sums, scores: Vec::new() });
    };
    let logits = base.model().predict(&batch, Some(adapter))?;
    let mut part = EvalPart::default();
    part.sums.labelled_tokens = examples.len() as i64;
    let mut loss = 0.0;
    for (index, (example, logits)) in examples.iter().zip(logits.chunks_exact(*labels)).enumerate() {
        match example.target {
            Target::Class(class) if (class as usize) < *labels => {
                part.sums.confusion.resize(labels * labels, 0);
                part.sums.confusion[class as usize * labels + argmax(logits)] += 1;
                loss += cross_entropy(logits, class as usize);
            }
            Target::Score(score) if *labels == 1 => {
                let off = f64::from(logits[0]) - f64::from(score);
                loss += off * off;
                part.scores.push(logits[0]);
            }
            _ => {
                let message = "is not labelled with what the model predicts".to_owned();
                return Err(crate::model::ModelError::Example { index, message }.into());
            }
        }
    }
    part.sums.loss = fixed(loss)?;
    Ok(part)
}

fn fixed(loss: f64) -> Result<i64, TrainError> {
    to_fixed(loss).ok_or(TrainError::Loss { step: 0, loss })
}

/// `log Σ exp(z) − z[class]`, in nats.
fn cross_entropy(logits: &[f32], class: usize) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| libm::exp(f64::from(logit) - f64::from(most))).sum();
    libm::log(sum) + f64::from(most) - f64::from(logits[class])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_add_up_in_any_order() {
        let one = EvalSums { loss: 3, labelled_tokens: 2, confusion: vec![1, 0, 1, 0] };
        let two = EvalSums { loss: 4, labelled_tokens: 1, confusion: vec![0, 0, 0, 1] };
        let (mut a, mut b) = (EvalSums::of_classes(2), EvalSums::default());
        [&one, &two].into_iter().for_each(|part| a.add(part));
        [&two, &one].into_iter().for_each(|part| b.add(part));
        assert_eq!(a, b);
        assert_eq!(a.confusion, [1, 0, 1, 1]);
    }

    #[test]
    fn the_loss_of_a_class_is_its_cross_entropy() {
        assert!((cross_entropy(&[0.0, 0.0, 0.0], 1) - 3f64.ln()).abs() < 1e-12);
        assert!((cross_entropy(&[1000.0, 0.0], 1) - 1000.0).abs() < 1e-9);
    }
}
