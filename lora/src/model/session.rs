//! One sequence that grows token by token: its keys and values, and what the adapter trains, prepared once.

use super::ModelError;
use super::cache::KvCache;
use super::embed::Inputs;
use super::transformer::{Head, NOT_A_LANGUAGE_MODEL, Run, Transformer, narrow};
use crate::flops::FlopCounter;
use crate::linear::Rows;
use crate::ops::Scope;
use crate::ops::attention::Span;
use crate::params::AdapterView;

/// A sequence of a language model with an adapter, and the keys and values of its tokens.
pub struct Session<'a> {
    model: &'a Transformer,
    run: Run<'a>,
    cache: KvCache,
}

impl Transformer {
    /// An empty sequence of up to `capacity` tokens.
    ///
    /// # Errors
    /// The model is no decoder with a language model's head, or the adapter does not fit.
    pub fn session<'a>(
        &'a self,
        adapter: Option<&AdapterView<'a>>,
        capacity: usize,
    ) -> Result<Session<'a>, ModelError> {
        if !matches!(self.parts.head, Head::LanguageModel(_)) || !self.mask.causal {
            return Err(NOT_A_LANGUAGE_MODEL);
        }
        if let Some(adapter) = adapter {
            self.parts.known.check(adapter, None)?;
        }
        let flops = FlopCounter::new();
        let scope = Scope { pool: &self.pool, flops: &flops };
        let capacity = capacity.min(self.max_positions);
        Ok(Session {
            model: self,
            run: self.run(Vec::new(), 0, Rows::default(), adapter, scope),
            cache: KvCache::new(self.parts.blocks.len(), self.heads.kv_columns(), capacity)?,
        })
    }
}

impl Session<'_> {
    /// Tokens of the sequence.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether it has none yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends tokens to the sequence; returns the logits `[V]` of the last one's successor.
    ///
    /// After an error the sequence is as it was.
    ///
    /// # Errors
    /// A token is not in the vocabulary, the sequence has no room for them, or none is given.
    pub fn append(&mut self, tokens: &[u32]) -> Result<Vec<f32>, ModelError> {
        let Self { model, run, cache } = self;
        let Head::LanguageModel(head) = &model.parts.head else { return Err(NOT_A_LANGUAGE_MODEL) };
        let flops = FlopCounter::new();
        let scope = Scope { pool: &model.pool, flops: &flops };
        let (before, after) = (cache.len(), cache.len() + tokens.len());
        if tokens.is_empty() || after > cache.capacity() {
            return Err(ModelError::TooLong { tokens: after, positions: cache.capacity() });
        }
        model.check_tokens(tokens, after)?;
        cache.settle(0);
        run.spans = vec![Span { queries: 0..tokens.len(), keys: 0..after }];
        run.rows = Rows::of_one(tokens.len(), Vec::new());
        run.ropes = model.ropes.tables(after);
        let positions: Vec<u32> = (before as u32..after as u32).collect();
        let pass = &model.pass(run, &positions, scope);
        let inputs = Inputs { tokens, positions: &positions, types: &[] };
        let (mut x, embedded) = model.parts.embed.forward(&run.embed, inputs, pass)?;
        embedded.recycle(scope)?;
        let newest = [tokens.len() as u32 - 1];
        let of = run.rows.gather(&newest);
        let (last, narrow) = (model.parts.blocks.len() - 1, narrow(&newest, &of, pass));
        for (i, block) in model.parts.blocks.iter().enumerate() {
            let (out, saved) = block.forward(x, narrow.filter(|_| i == last), pass, Some(cache.layer(i)))?;
            saved.recycle(scope)?;
            x = out;
        }
        cache.settle(tokens.len());
        let logits = head.logits(&x, &pass.narrowed(narrow))?;
        scope.pool.recycle(x)?;
        Ok(logits)
    }
}
