//! What a model gives without gradients: losses, logits, predictions, and the next token with a cache.

use candle_core::Tensor;

use super::batch::Labels;
use super::cache::KvCache;
use super::embed::Inputs;
use super::pass::Pass;
use super::transformer::{
    Head, LossSum, NOT_A_CLASSIFIER, NOT_A_LANGUAGE_MODEL, Transformer, inputs, narrow,
};
use super::{ModelError, PackedBatch};
use crate::flops::FlopCounter;
use crate::linear::Factors;
use crate::linear::embedding::EmbeddingFactors;
use crate::linear::Rows;
use crate::ops::Scope;
use crate::ops::attention::Span;
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

    /// A cache for one sequence of up to `capacity` tokens.
    ///
    /// # Errors
    /// The model is no decoder.
    pub fn new_cache(&self, capacity: usize) -> Result<KvCache, ModelError> {
        if !self.mask.causal {
            return Err(NOT_A_LANGUAGE_MODEL);
        }
        KvCache::new(self.parts.blocks.len(), self.heads.kv_columns(), capacity)
    }

    /// Appends tokens to a sequence; returns the logits `[V]` of the last one's successor.
    ///
    /// # Errors
    /// As [`Transformer::loss_and_gradients`]; the sequence is longer than the cache was made for, or no token is given.
    pub fn decode(
        &self,
        tokens: &[u32],
        adapter: Option<&AdapterView>,
        cache: &mut KvCache,
    ) -> Result<Vec<f32>, ModelError> {
        let Head::LanguageModel(head) = &self.parts.head else { return Err(NOT_A_LANGUAGE_MODEL) };
        let flops = FlopCounter::new();
        let scope = Scope { pool: &self.pool, flops: &flops };
        let (before, after) = (cache.len(), cache.len() + tokens.len());
        let limit = self.max_positions.min(cache.capacity());
        if tokens.is_empty() || after > limit {
            return Err(ModelError::TooLong { tokens: after, positions: limit });
        }
        self.check_tokens(tokens, after)?;
        if let Some(adapter) = adapter {
            self.parts.known.check(adapter, None)?;
        }
        cache.settle(0);
        let spans = vec![Span { queries: 0..tokens.len(), keys: 0..after }];
        let run = self.run(spans, after, Rows::of_one(tokens.len(), Vec::new()), adapter, scope);
        let positions: Vec<u32> = (before as u32..after as u32).collect();
        let pass = &self.pass(&run, &positions, scope);
        let inputs = Inputs { tokens, positions: &positions, types: &[] };
        let (mut x, embedded) = self.parts.embed.forward(&run.embed, inputs, pass)?;
        embedded.recycle(scope)?;
        let newest = [tokens.len() as u32 - 1];
        let of = run.rows.gather(&newest);
        let (last, narrow) = (self.parts.blocks.len() - 1, narrow(&newest, &of, pass));
        for (i, block) in self.parts.blocks.iter().enumerate() {
            let (out, saved) = block.forward(x, narrow.filter(|_| i == last), pass, Some(cache.layer(i)))?;
            saved.recycle(scope)?;
            x = out;
        }
        cache.settle(tokens.len());
        let logits = head.logits(&x, &pass.narrowed(narrow))?;
        scope.pool.recycle(x)?;
        run.bound.recycle(scope);
        Ok(logits)
    }

    /// The norms that the magnitudes of a DoRA adapter are divided by, at the magnitudes' places. Where an adapter does not
    /// change between passes, [`AdapterView::norms`] with these spares each pass their computation.
    ///
    /// # Errors
    /// The adapter does not fit.
    pub fn magnitude_norms(&self, adapter: &AdapterView) -> Result<Vec<f32>, ModelError> {
        self.parts.known.check(adapter, None)?;
        let flops = FlopCounter::new();
        let scope = Scope { pool: &self.pool, flops: &flops };
        let mut norms = vec![0.0; adapter.layout.len()];
        let mut put = |module: &str, values: Option<Vec<f32>>| {
            let place = adapter.layout.find(module).and_then(|module| module.magnitude.clone());
            if let (Some(place), Some(values)) = (place, values) {
                norms[place].copy_from_slice(&values);
            }
        };
        for linear in &self.parts.parameters.linears {
            put(&linear.name, Factors::norms(linear, adapter, scope));
        }
        let embed = &self.parts.embed;
        let table = embed.frozen_table(&self.parts.parameters);
        put(&embed.name, EmbeddingFactors::norms(&embed.name, table, adapter, scope));
        Ok(norms)
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
