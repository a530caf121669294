//! One step: the gradients of micro-batches are added up, and once they are reduced, the update is made.

use lorafleet_spec::data::Example;

use super::{TrainError, Trainer};
use crate::exact::{AddError, Totals};
use crate::model::PackedBatch;
use crate::optim::{Update, clip};
use crate::params::{AdapterView, Dropout};

/// What one finished step was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The step, counted from 1.
    pub step: u64,
    /// Mean loss of the labelled tokens, in nats.
    pub loss: f64,
    /// Learning rate of the update.
    pub lr: f64,
    /// L2 norm of the mean gradient, before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the model, over all members.
    pub tokens: u64,
    /// Tokens that bore a label, over all members.
    pub labelled_tokens: u64,
}

impl Trainer {
    /// Adds the gradients, loss and token counts of one micro-batch of the next step.
    ///
    /// # Errors
    /// When the model refuses the examples, or a value is not finite or out of range: the job has diverged.
    pub fn micro_batch(&mut self, examples: &[&Example]) -> Result<(), TrainError> {
        self.micro_batch_at(examples, &(0..examples.len()).collect::<Vec<_>>())
    }

    /// The same for examples at these places in the step: dropout depends on an example's place, not on how the step is cut
    /// into micro-batches.
    ///
    /// # Errors
    /// As [`Trainer::micro_batch`].
    pub fn micro_batch_at(&mut self, examples: &[&Example], places: &[usize]) -> Result<(), TrainError> {
        let step = self.next_step()?;
        let batch = PackedBatch::new(examples)?.at_places(places);
        let dropout = (self.dropout > 0.0).then_some(Dropout { p: self.dropout, seed: self.seed, step });
        // Not `self.view()`: the gradients are borrowed beside it.
        let view = AdapterView {
            layout: &self.layout,
            weights: &self.states.current().weights,
            frozen_start: self.start.as_ref().map(|start| start.as_slice()),
            dropout,
        };
        let (model, gradients) = (self.base.model(), &mut self.gradients);
        let sum = model.loss_and_gradients_keeping(self.keep, &batch, &view, gradients, &self.flops)?;
        let totals = Totals {
            loss: sum.loss,
            labelled_tokens: sum.labelled_tokens as u64,
            tokens: batch.tokens() as u64,
        };
        self.accumulator.add(&self.gradients, totals).map_err(|error| self.diverged(step, error))
    }

    /// The gradients of the last micro-batch, summed over its labelled tokens, laid out as the adapter.
    pub fn gradients(&self) -> &[f32] {
        &self.gradients
    }

    fn next_step(&self) -> Result<u64, TrainError> {
        let step = self.step() + 1;
        if step > self.total_steps {
            Err(TrainError::Done { total_steps: self.total_steps })
        } else {
            Ok(step)
        }
    }

    /// The step as the optimizer counts it for its bias correction: the same, also after a state was taken over.
    fn optimizer_steps(&self, step: u64) -> u64 {
        let forgets = lorafleet_failpoint::defect("forget-step-count");
        if forgets { step - self.restored_at } else { step }
    }

    fn diverged(&self, step: u64, error: AddError) -> TrainError {
        match error {
            AddError::Loss(loss) => TrainError::Loss { step, loss },
            AddError::NotFinite { index, value } => TrainError::Gradient {
                step,
                parameter: self.parameter(index),
                value,
                limit: f64::from(f32::MAX),
            },
            AddError::OutOfRange { index, value, limit } => {
                TrainError::Gradient { step, parameter: self.parameter(index), value, limit }
            }
        }
    }

    /// Name of the tensor that holds a value of the flat buffers.
    fn parameter(&self, index: usize) -> String {
        self.layout().name_at(index).unwrap_or_default()
    }

    /// Drops what was accumulated of the next step, after an exchange that failed.
    pub fn abandon_step(&mut self) {
        self.accumulator.clear();
    }

    /// Makes the update from the reduced sums: writes the spare state, then makes it the current one.
    ///
    /// # Errors
    /// When the sums or the new weights are not finite, or there was no label. The current state is then untouched.
    pub fn finish_step(&mut self) -> Result<StepReport, TrainError> {
        let step = self.next_step()?;
        let totals = self.accumulator.totals();
        if totals.labelled_tokens == 0 {
            return Err(TrainError::NoLabels { step, tokens: totals.tokens });
        }
        if !totals.loss.is_finite() {
            return Err(TrainError::Loss { step, loss: totals.loss });
        }
        let labelled = totals.labelled_tokens as f64;
        let squares = self.accumulator.mean_into(labelled, &mut self.gradients, &mut self.partials);
        let grad_norm = squares.sqrt();
        if !grad_norm.is_finite() {
            let index = self.gradients.iter().position(|g| !g.is_finite()).unwrap_or_default();
            return Err(self.diverged(step, AddError::NotFinite { index, value: self.gradients[index] }));
        }
        let update = Update {
            share: self.rate.share(step),
            clip: clip::coefficient(grad_norm, self.clip),
            count: self.optimizer_steps(step),
        };
        let lr = self.peak * update.share;
        let (current, spare) = self.states.current_and_spare();
        if !self.optimizer.step(update, &self.gradients, current, spare) {
            return Err(TrainError::Update { step });
        }
        self.states.adopt();
        self.accumulator.clear();
        let (tokens, labelled_tokens) = (totals.tokens, totals.labelled_tokens);
        Ok(StepReport { step, loss: totals.loss / labelled, lr, grad_norm, tokens, labelled_tokens })
    }
}
