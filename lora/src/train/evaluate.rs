//! Evaluation: sums that may be computed in parts by anyone, in any order, to the same bits.

use lorafleet_spec::data::Example;

use super::{TrainError, Trainer};
use crate::exact::{from_fixed, to_fixed};
use crate::model::PackedBatch;

/// Sums of an evaluation; adding them is exact, so the parts may be computed by anyone in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvalSums {
    /// Sum of the losses, in units of 2^-36 nats.
    pub loss: i64,
    /// Tokens that bear a label.
    pub labelled_tokens: i64,
}

impl EvalSums {
    /// Adds the sums of another part.
    pub fn add(&mut self, other: EvalSums) {
        self.loss += other.loss;
        self.labelled_tokens += other.labelled_tokens;
    }

    /// Mean loss in nats; nothing without a label.
    pub fn mean_loss(&self) -> Option<f64> {
        (self.labelled_tokens > 0).then(|| from_fixed(self.loss) / self.labelled_tokens as f64)
    }
}

impl Trainer {
    /// Loss of examples under the current adapter, as exact sums.
    ///
    /// The examples go through the model as one batch, and a loss's last bits may depend on its company there: cut the
    /// evaluation set by the spec, never by the number of members.
    ///
    /// # Errors
    /// When the model refuses the examples, or the loss is not finite.
    pub fn evaluate(&self, examples: &[&Example]) -> Result<EvalSums, TrainError> {
        let batch = PackedBatch::new(examples)?;
        let sum = self.base.model().loss(&batch, Some(&self.view()), &self.flops)?;
        let loss = to_fixed(sum.loss).ok_or(TrainError::Loss { step: self.step(), loss: sum.loss })?;
        Ok(EvalSums { loss, labelled_tokens: sum.labelled_tokens as i64 })
    }
}
