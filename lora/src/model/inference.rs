//! What a model gives without gradients: losses, logits and predictions.

use candle_core::Tensor;

use super::batch::Labels;
use super::pass::Pass;
use super::transformer::{
    Head, LossSum, NOT_A_CLASSIFIER, NOT_A_LANGUAGE_MODEL, Transformer, inputs, narrow,
};
use super::{ModelError, PackedBatch};
use crate::flops::FlopCounter;
use crate::ops::Scope;
use crate::params::AdapterView;

impl Transformer {
    /// The loss of a micro-batch, summed over what is labelled, without keeping anything for a backward pass.
    ///
    /// # Errors
    /// As [`Transformer::loss_and_gradients`].
    pub fn loss(
        &self,
        batch: &PackedBatch,
        adapter: Option<&AdapterView>,
        flops: &FlopCounter,
    ) -> Result<LossSum, ModelError> {
        let labelled_tokens = batch.labelled_tokens();
        if labelled_tokens == 0 {
            return Ok(LossSum::default());
        }
        let scope = Scope { pool: &self.pool, flops };
        let loss = self.with_stream(batch, &self.head_rows(batch), adapter, scope, |x, pass| {
            match (&self.parts.head, batch.labels()) {
                (Head::LanguageModel(head), Labels::Tokens { targets, .. }) => head.loss(x, targets, pass),
                (Head::Classifier(head, _), labels) => head.loss(x, labels, pass),
                (Head::LanguageModel(_), _) => Err(NOT_A_CLASSIFIER),
            }
        })?;
        Ok(LossSum { loss, labelled_tokens })
    }

    /// Logits of every token of a batch, `[tokens, V]`, row-major.
    ///
    /// # Errors
    /// As [`Transformer::loss_and_gradients`]; the model is a classifier.
    pub fn logits(&self, batch: &PackedBatch, adapter: Option<&AdapterView>) -> Result<Vec<f32>, ModelError> {
        let Head::LanguageModel(head) = &self.parts.head else { return Err(NOT_A_LANGUAGE_MODEL) };
        let flops = FlopCounter::new();
        let scope = Scope { pool: &self.pool, flops: &flops };
        let rows: Vec<u32> = (0..batch.inputs().len() as u32).collect();
        self.with_stream(batch, &rows, adapter, scope, |x, pass| head.logits(x, pass))
    }

    /// Logits of the classes, or the score, of every sequence of a batch, `[sequences, labels]`, row-major.
    ///
    /// # Errors
    /// As [`Transformer::loss_and_gradients`]; the model is not a classifier.
    pub fn predict(
        &self,
        batch: &PackedBatch,
        adapter: Option<&AdapterView>,
    ) -> Result<Vec<f32>, ModelError> {
        let Head::Classifier(head, _) = &self.parts.head else { return Err(NOT_A_CLASSIFIER) };
        let flops = FlopCounter::new();
        let scope = Scope { pool: &self.pool, flops: &flops };
        self.with_stream(batch, &self.head_rows(batch), adapter, scope, |x, pass| head.logits(x, pass))
    }

    /// Calls `f` with some rows of the last block's output.
    fn with_stream<T>(
        &self,
        batch: &PackedBatch,
        rows: &[u32],
        adapter: Option<&AdapterView>,
        scope: Scope,
        f: impl FnOnce(&Tensor, &Pass) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        if let Some(adapter) = adapter {
            self.parts.known.check(adapter, None)?;
        }
        let run = self.start(batch, adapter, scope)?;
        let pass = &self.pass(&run, batch.positions(), scope);
        let (mut x, embedded) = self.parts.embed.forward(&run.embed, inputs(batch), pass)?;
        embedded.recycle(scope)?;
        let of = run.rows.gather(rows);
        let (last, narrow) = (self.parts.blocks.len() - 1, narrow(rows, &of, pass));
        for (i, block) in self.parts.blocks.iter().enumerate() {
            let (out, saved) = block.forward(x, narrow.filter(|_| i == last), pass, None)?;
            saved.recycle(scope)?;
            x = out;
        }
        let result = f(&x, &pass.narrowed(narrow))?;
        scope.pool.recycle(x)?;
        run.bound.recycle(scope);
        Ok(result)
    }
}
