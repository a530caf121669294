//! The transformer: every family is this one, described by data; forward and backward by hand on packed batches.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;
use lorafleet_spec::BaseShape;
use lorafleet_spec::base::{HeadToken, Positions};
use lorafleet_spec::job::Precision;

use super::batch::Labels;
use super::block::{Block, Depth, Saved};
use super::cache::KvCache;
use super::classifier::ClassifierHead;
use super::embed::{BoundEmbed, Embed, Inputs};
use super::lm_head::LmHead;
use super::parameters::{Bound, Parameters};
use super::pass::{Narrow, Pass};
use super::{ModelError, PackedBatch, load};
use crate::flops::FlopCounter;
use crate::linear::embedding::EmbeddingFactors;
use crate::linear::{Factors, FrozenLinear, Rows};
use crate::ops::Scope;
use crate::ops::attention::{Heads, Mask, Span};
use crate::ops::pool::Pool;
use crate::ops::rope::{RopeTable, Ropes};
use crate::params::{AdapterView, ModuleKind};

/// A loss that is summed over what is labelled, not averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSum {
    /// Sum of the losses: of labelled tokens, in nats, or of sequences with a class or a score.
    pub loss: f64,
    /// How many there are.
    pub labelled_tokens: usize,
}

/// What the forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// All that the backward pass reads.
    #[default]
    Everything,
    /// The input of each block, from which the backward pass computes the block again: the same bits for less memory
    /// and about a third more time (arXiv:1604.06174).
    BlockInputs,
}

/// A model whose weights are frozen. Every pass may run on several threads, and several passes at once: none changes
/// the model, and no result depends on how many threads there are.
#[derive(Debug)]
pub struct Transformer {
    parts: Parts,
    heads: Heads,
    mask: Mask,
    max_positions: usize,
    ropes: Ropes,
    pool: Pool,
}

/// What a model is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub parameters: Parameters,
    pub embed: Embed,
    pub blocks: Vec<Block>,
    pub head: Head,
    pub known: Known,
}

/// What follows the last block.
#[derive(Debug)]
pub(super) enum Head {
    LanguageModel(LmHead),
    Classifier(ClassifierHead, HeadToken),
}

/// Sizes by name.
#[derive(Debug)]
pub(super) struct Known {
    /// `(in, out)` of each linear layer.
    pub linears: HashMap<String, (usize, usize)>,
    /// The token embedding, `(V, H)`.
    pub embedding: Option<(String, (usize, usize))>,
    /// Shapes of all tensors.
    pub tensors: HashMap<String, Vec<usize>>,
}

/// What one pass holds.
struct Run<'a> {
    bound: Bound<'a>,
    embed: BoundEmbed<'a>,
    spans: Vec<Span>,
    ropes: Vec<Arc<RopeTable>>,
    rows: Rows,
}

/// The lowest place at which something is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lowest {
    Embedding,
    Block(usize, Depth),
    Head,
}

/// What is kept of a block.
enum Kept {
    Saved(Saved),
    Input(Tensor),
}

impl Transformer {
    /// Loads the weights of a base of that shape from its folder; those of linear layers are held in that precision.
    ///
    /// # Errors
    /// A file cannot be opened, or was truncated since its shape was read.
    pub fn load(dir: &Path, shape: &BaseShape, precision: Precision) -> Result<Self, ModelError> {
        let ropes = match &shape.positions {
            Positions::Rope(ropes) => ropes.clone(),
            Positions::Learned { .. } => Vec::new(),
        };
        Ok(Self {
            parts: load::load(dir, shape, precision)?,
            heads: Heads {
                heads: shape.heads,
                kv_heads: shape.kv_heads,
                head_dim: shape.head_dim,
                scale: shape.attention.scale as f32,
            },
            mask: Mask {
                causal: shape.attention.causal,
                window: None,
                softcap: shape.attention.softcap.map(|cap| cap as f32),
            },
            max_positions: shape.max_positions,
            ropes: Ropes::new(ropes, shape.head_dim),
            pool: Pool::default(),
        })
    }

    /// Its linear layers.
    pub(crate) fn frozen(&self) -> &[FrozenLinear] {
        &self.parts.parameters.linears
    }

    /// Size of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.parts.embed.vocabulary
    }

    /// The loss of a micro-batch, summed over what is labelled, and the gradient of that sum.
    ///
    /// `gradients` is laid out as the adapter; every value of an adapted module or a whole tensor is **overwritten**.
    ///
    /// # Errors
    /// A token is not in the vocabulary, a sequence is too long, the adapter does not fit, or the labels are not of the
    /// kind that the model predicts.
    pub fn loss_and_gradients(
        &self,
        batch: &PackedBatch,
        adapter: &AdapterView,
        gradients: &mut [f32],
        flops: &FlopCounter,
    ) -> Result<LossSum, ModelError> {
        self.loss_and_gradients_keeping(Keep::Everything, batch, adapter, gradients, flops)
    }

    /// As [`Transformer::loss_and_gradients`], with a choice of what the forward pass keeps.
    ///
    /// # Errors
    /// As [`Transformer::loss_and_gradients`].
    pub fn loss_and_gradients_keeping(
        &self,
        keep: Keep,
        batch: &PackedBatch,
        adapter: &AdapterView,
        gradients: &mut [f32],
        flops: &FlopCounter,
    ) -> Result<LossSum, ModelError> {
        self.check_adapter(adapter, Some(gradients.len()))?;
        let labelled_tokens = batch.labelled_tokens();
        if labelled_tokens == 0 {
            gradients.fill(0.0);
            return Ok(LossSum::default());
        }
        let scope = Scope { pool: &self.pool, flops };
        let run = self.start(batch, Some(adapter), scope)?;
        let pass = &self.pass(&run, batch.positions(), scope);
        let lowest = self.lowest(&run, pass);
        let rows = self.head_rows(batch);
        let of = run.rows.gather(&rows);
        let narrow = narrow(&rows, &of, pass);
        let inputs = inputs(batch);
        let (mut x, embedded) = self.parts.embed.forward(&run.embed, inputs, pass)?;
        let (last, mut kept) = (self.parts.blocks.len() - 1, Vec::with_capacity(self.parts.blocks.len()));
        for (i, block) in self.parts.blocks.iter().enumerate() {
            let (out, saved) = block.forward(x, narrow.filter(|_| i == last), pass, None)?;
            x = out;
            match keep {
                _ if !lowest.reaches(i) => saved.recycle(scope)?,
                Keep::BlockInputs if i < last => kept.push(Kept::Input(saved.into_input(scope)?)),
                _ => kept.push(Kept::Saved(saved)),
            }
        }
        let of_head = &pass.narrowed(narrow);
        let (loss, d) = self.head_backward(x, batch, lowest != Lowest::Head, gradients, of_head)?;
        let d = self.blocks_backward(kept, d, narrow, lowest, gradients, pass)?;
        match (lowest, d) {
            (Lowest::Embedding, Some(d)) => {
                let wrote = self.head_wrote_tokens(&run);
                self.parts.embed.backward(&run.embed, embedded, d, inputs, wrote, gradients, pass)?;
            }
            (_, d) => {
                embedded.recycle(scope)?;
                d.into_iter().try_for_each(|d| scope.pool.recycle(d))?;
            }
        }
        run.bound.recycle(scope);
        Ok(LossSum { loss, labelled_tokens })
    }

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

    /// The norms that the magnitudes of a DoRA adapter are divided by, at the magnitudes' places. Where an adapter does not
    /// change between passes, [`AdapterView::norms`] with these spares each pass their computation.
    ///
    /// # Errors
    /// The adapter does not fit.
    pub fn magnitude_norms(&self, adapter: &AdapterView) -> Result<Vec<f32>, ModelError> {
        self.check_adapter(adapter, None)?;
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
            self.check_adapter(adapter, None)?;
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
            self.check_adapter(adapter, None)?;
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

    /// The rows of the last block's output that the head reads, in order.
    fn head_rows(&self, batch: &PackedBatch) -> Vec<u32> {
        match (&self.parts.head, batch.labels()) {
            (Head::Classifier(_, HeadToken::First), _) => {
                batch.spans().iter().map(|span| span.start as u32).collect()
            }
            (Head::Classifier(_, HeadToken::Last), _) => {
                batch.spans().iter().map(|span| span.end as u32 - 1).collect()
            }
            (Head::LanguageModel(_), Labels::Tokens { rows, .. }) => rows.clone(),
            (Head::LanguageModel(_), _) => Vec::new(),
        }
    }

    /// The head's loss, the gradients of what is trained of it, and that of its rows.
    fn head_backward(
        &self,
        x: Tensor,
        batch: &PackedBatch,
        wanted: bool,
        gradients: &mut [f32],
        pass: &Pass,
    ) -> Result<(f64, Option<Tensor>), ModelError> {
        match (&self.parts.head, batch.labels()) {
            (Head::LanguageModel(head), Labels::Tokens { targets, .. }) => {
                head.loss_and_gradient(x, targets, wanted, gradients, pass)
            }
            (Head::Classifier(head, _), labels) => {
                let (loss, d) = head.loss_and_gradient(x, labels, gradients, pass)?;
                Ok((loss, Some(d)))
            }
            (Head::LanguageModel(_), _) => Err(NOT_A_CLASSIFIER),
        }
    }

    /// Walks back through the blocks; returns the gradient of the first one's input, if it is wanted.
    fn blocks_backward(
        &self,
        mut kept: Vec<Kept>,
        mut d: Option<Tensor>,
        narrow: Option<Narrow>,
        lowest: Lowest,
        gradients: &mut [f32],
        pass: &Pass,
    ) -> Result<Option<Tensor>, ModelError> {
        let last = self.parts.blocks.len() - 1;
        for (i, block) in self.parts.blocks.iter().enumerate().rev() {
            let (Some(kept), Some(gradient)) = (kept.pop(), d.take()) else { break };
            let saved = match kept {
                Kept::Saved(saved) => saved,
                Kept::Input(x) => {
                    let (out, saved) = block.forward(x, None, pass, None)?;
                    pass.scope.pool.recycle(out)?;
                    saved
                }
            };
            let depth = match lowest {
                Lowest::Block(first, depth) if first == i => depth,
                _ => Depth::THROUGH,
            };
            d = block.backward(saved, gradient, narrow.filter(|_| i == last), depth, gradients, pass)?;
        }
        Ok(d)
    }

    /// Where the backward pass ends.
    fn lowest(&self, run: &Run, pass: &Pass) -> Lowest {
        if self.parts.embed.is_trained(&run.embed, pass) {
            return Lowest::Embedding;
        }
        let blocks = self.parts.blocks.iter().enumerate();
        let found = blocks.into_iter().find_map(|(i, block)| Some((i, block.lowest(pass)?)));
        found.map_or(Lowest::Head, |(i, depth)| Lowest::Block(i, depth))
    }

    /// Whether a tied head has written the gradient of the token vectors.
    fn head_wrote_tokens(&self, run: &Run) -> bool {
        match &self.parts.embed.tokens {
            super::embed::TokenTable::Head(head) => run.bound.trains(*head),
            super::embed::TokenTable::Rows(_) => false,
        }
    }

    fn start<'a>(
        &'a self,
        batch: &PackedBatch,
        adapter: Option<&AdapterView<'a>>,
        scope: Scope,
    ) -> Result<Run<'a>, ModelError> {
        self.check_tokens(batch.inputs(), batch.longest())?;
        let spans = batch.spans().iter().map(|s| Span { queries: s.clone(), keys: s.clone() }).collect();
        let drops = adapter.is_some_and(|adapter| adapter.dropout.is_some());
        let keys = if drops { batch.keys() } else { Vec::new() };
        let rows = Rows::of_one(batch.inputs().len(), keys);
        Ok(self.run(spans, batch.longest(), rows, adapter, scope))
    }

    fn run<'a>(
        &'a self,
        spans: Vec<Span>,
        longest: usize,
        rows: Rows,
        adapter: Option<&AdapterView<'a>>,
        scope: Scope,
    ) -> Run<'a> {
        let bound = Bound::new(&self.parts.parameters, adapter, scope);
        Run {
            embed: BoundEmbed::new(&self.parts.embed, &bound, adapter, scope),
            bound,
            rows,
            spans,
            ropes: self.ropes.tables(longest),
        }
    }

    fn pass<'r>(&'r self, run: &'r Run<'r>, positions: &'r [u32], scope: Scope<'r>) -> Pass<'r> {
        let Run { bound, spans, ropes, rows, .. } = run;
        Pass { bound, spans, positions, ropes, heads: self.heads, mask: self.mask, rows, scope }
    }

    fn check_tokens(&self, tokens: &[u32], longest: usize) -> Result<(), ModelError> {
        if longest > self.max_positions {
            return Err(ModelError::TooLong { tokens: longest, positions: self.max_positions });
        }
        let vocabulary = self.vocabulary();
        match tokens.iter().find(|&&token| token as usize >= vocabulary) {
            Some(&token) => Err(ModelError::Token { token, vocabulary }),
            None => Ok(()),
        }
    }

    /// Every adapted module and whole tensor is one of the model's, of its size, and the buffers are as long as the
    /// layout.
    fn check_adapter(&self, adapter: &AdapterView, gradients: Option<usize>) -> Result<(), ModelError> {
        let problem =
            |module: &str, message: String| Err(ModelError::Adapter { module: module.to_owned(), message });
        let known = &self.parts.known;
        for module in adapter.layout.modules() {
            let wanted = match module.kind {
                ModuleKind::Linear => known.linears.get(&module.module),
                ModuleKind::Embedding => {
                    known.embedding.as_ref().filter(|(name, _)| *name == module.module).map(|(_, size)| size)
                }
            };
            let Some(&wanted) = wanted else {
                return problem(&module.module, "is for a layer that this model does not have".to_owned());
            };
            let found = (module.in_features, module.out_features);
            if found != wanted || module.rank == 0 {
                let message = format!("is {found:?} of rank {}, but the layer is {wanted:?}", module.rank);
                return problem(&module.module, message);
            }
        }
        for tensor in adapter.layout.whole() {
            match known.tensors.get(&tensor.name) {
                Some(shape) if *shape == tensor.shape => {}
                Some(shape) => {
                    let message = format!("is {:?}, but the model's is {shape:?}", tensor.shape);
                    return problem(&tensor.name, message);
                }
                None => return problem(&tensor.name, "is a tensor that this model does not have".to_owned()),
            }
        }
        let len = adapter.layout.len();
        if adapter.weights.len() != len || gradients.is_some_and(|g| g != len) {
            return problem("all modules", format!("needs buffers of {len} values"));
        }
        Ok(())
    }
}

const NOT_A_CLASSIFIER: ModelError =
    ModelError::Task("the base is loaded as a language model, which predicts tokens, not classes or scores");
const NOT_A_LANGUAGE_MODEL: ModelError =
    ModelError::Task("the base is loaded as a classifier, which predicts classes or scores, not tokens");

impl Lowest {
    /// Whether the backward pass reaches a block.
    fn reaches(self, block: usize) -> bool {
        match self {
            Self::Embedding => true,
            Self::Block(first, _) => block >= first,
            Self::Head => false,
        }
    }
}

/// The rows that the head reads, where they are not all.
fn narrow<'a>(rows: &'a [u32], of: &'a Rows, pass: &Pass) -> Option<Narrow<'a>> {
    (rows.len() < pass.tokens()).then_some(Narrow { rows, of })
}

fn inputs(batch: &PackedBatch) -> Inputs<'_> {
    Inputs { tokens: batch.inputs(), positions: batch.positions(), types: batch.types() }
}
