//! The decoder: Llama-type models, forward and backward by hand on packed batches.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;
use lorafleet_spec::BaseShape;

use super::block::{Block, Pass, Slot};
use super::block_backward::Until;
use super::cache::KvCache;
use super::head::Head;
use super::weights::Weights;
use super::{ModelError, PackedBatch};
use crate::flops::FlopCounter;
use crate::linear::{Factors, FrozenLinear, Rows};
use crate::ops::Scope;
use crate::ops::attention::{Heads, Span};
use crate::ops::embedding::{Table, lookup};
use crate::ops::pool::Pool;
use crate::ops::rope::{RopeTable, frequencies};
use crate::params::AdapterView;

/// A loss that is summed over labelled tokens, not averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSum {
    /// Sum of the labelled tokens' cross-entropy, in nats.
    pub loss: f64,
    /// Labelled tokens.
    pub labelled_tokens: usize,
}

/// A linear layer that can be adapted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear<'a> {
    /// Full name, e.g. `model.layers.0.self_attn.q_proj`.
    pub name: &'a str,
    /// Width of its input.
    pub in_features: usize,
    /// Width of its output.
    pub out_features: usize,
}

/// A decoder whose weights are frozen. Every pass may run on several threads, and several passes at once: none
/// changes the model, and no result depends on how many threads there are.
#[derive(Debug)]
pub struct Decoder {
    /// `[V, H]`; where it is tied, the head holds it.
    embedding: Option<Vec<f32>>,
    blocks: Vec<Block>,
    head: Head,
    heads: Heads,
    eps: f32,
    max_positions: usize,
    frequencies: Vec<f32>,
    rope: Mutex<Arc<RopeTable>>,
    pool: Pool,
}

/// The state of one pass.
struct Run<'a> {
    spans: Vec<Span>,
    rope: Arc<RopeTable>,
    factors: Vec<Option<Factors<'a>>>,
    rows: Rows,
}

impl Decoder {
    /// Loads the weights of a base of that shape from its folder.
    ///
    /// # Errors
    /// A file cannot be opened, or was truncated since its shape was read.
    pub fn load(dir: &Path, shape: &BaseShape) -> Result<Self, ModelError> {
        let weights = Weights::open(dir, shape)?;
        let layer = |layer: usize| -> Result<Block, ModelError> {
            let names = Slot::ALL.map(|slot| format!("model.layers.{layer}.{}", slot.module()));
            let linears = names.into_iter().map(|name| linear(&weights, shape, name));
            let linears = linears.collect::<Result<Vec<_>, _>>()?;
            Ok(Block {
                attention_norm: weights.read(&format!("model.layers.{layer}.input_layernorm.weight"))?,
                mlp_norm: weights.read(&format!("model.layers.{layer}.post_attention_layernorm.weight"))?,
                linears: linears.try_into().unwrap_or_else(|_| unreachable!("one linear layer per slot")),
            })
        };
        let blocks = (0..shape.layers).map(layer).collect::<Result<_, _>>()?;
        let embedding = weights.read("model.embed_tokens.weight")?;
        let untied = if shape.tied { None } else { Some(weights.read("lm_head.weight")?) };
        let head = untied.as_ref().unwrap_or(&embedding);
        let eps = shape.norm.eps as f32;
        let frequencies = shape.rope_at(0).map_or_else(Vec::new, |rope| frequencies(rope, shape.head_dim));
        Ok(Self {
            head: Head {
                norm: weights.read("model.norm.weight")?,
                linear: FrozenLinear::new("lm_head".to_owned(), head, shape.vocab, None),
                eps,
            },
            embedding: untied.is_some().then_some(embedding),
            blocks,
            heads: Heads {
                heads: shape.heads,
                kv_heads: shape.kv_heads,
                head_dim: shape.head_dim,
                scale: 1.0 / (shape.head_dim as f32).sqrt(),
            },
            eps,
            max_positions: shape.max_positions,
            rope: Mutex::new(Arc::new(RopeTable::new(&frequencies, 0))),
            frequencies,
            pool: Pool::default(),
        })
    }

    /// The linear layers that can be adapted, in the order of the modules. The output head is not among them.
    pub fn linears(&self) -> impl Iterator<Item = Linear<'_>> {
        self.frozen().map(|l| Linear {
            name: &l.name,
            in_features: l.in_features,
            out_features: l.out_features,
        })
    }

    /// Size of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.head.linear.out_features
    }

    fn frozen(&self) -> impl Iterator<Item = &FrozenLinear> {
        self.blocks.iter().flat_map(|block| &block.linears)
    }

    /// The loss of a micro-batch, summed over its labelled tokens, and the gradient of that sum.
    ///
    /// `gradients` is laid out as the adapter; every value of an adapted module is **overwritten**.
    ///
    /// # Errors
    /// A token is not in the vocabulary, a sequence is too long, or the adapter does not fit.
    pub fn loss_and_gradients(
        &self,
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
        let pass = self.pass(&run, batch.positions(), scope);
        let lowest = self.lowest(&run.factors);
        let mut x = self.embed(batch.inputs(), scope)?;
        let mut kept = Vec::with_capacity(self.blocks.len());
        for (i, block) in self.blocks.iter().enumerate() {
            let (out, saved) = block.forward(x, self.factors(&run, i), pass, None)?;
            x = out;
            match lowest {
                Some((first, _)) if i >= first => kept.push(saved),
                _ => saved.recycle(scope)?,
            }
        }
        let (loss, d) = self.head.loss_and_gradient(x, batch.rows(), batch.targets(), scope)?;
        if let Some((first, until)) = lowest {
            let mut d = Some(d);
            for (i, saved) in (first..self.blocks.len()).zip(kept).rev() {
                let Some(gradient) = d.take() else { break };
                let until = if i == first { until } else { Until::Input };
                let factors = self.factors(&run, i);
                d = self.blocks[i].backward(saved, gradient, factors, until, gradients, pass)?;
            }
        }
        run.factors.into_iter().flatten().for_each(|f| f.recycle(scope));
        Ok(LossSum { loss, labelled_tokens })
    }

    /// The loss of a micro-batch, summed over its labelled tokens, without keeping anything for a backward pass.
    ///
    /// # Errors
    /// As [`Decoder::loss_and_gradients`].
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
        let x = self.hidden(batch, adapter, scope)?;
        let loss = self.head.loss(&x, batch.rows(), batch.targets(), scope)?;
        scope.pool.recycle(x).map_err(ModelError::from)?;
        Ok(LossSum { loss, labelled_tokens })
    }

    /// Logits of every token of a batch, `[tokens, V]`, row-major.
    ///
    /// # Errors
    /// As [`Decoder::loss_and_gradients`].
    pub fn logits(&self, batch: &PackedBatch, adapter: Option<&AdapterView>) -> Result<Vec<f32>, ModelError> {
        let flops = FlopCounter::new();
        let scope = Scope { pool: &self.pool, flops: &flops };
        let x = self.hidden(batch, adapter, scope)?;
        let rows: Vec<u32> = (0..batch.inputs().len() as u32).collect();
        self.head.logits(&x, &rows, scope)
    }

    /// A cache for one sequence of up to `capacity` tokens.
    pub fn new_cache(&self, capacity: usize) -> KvCache {
        KvCache::new(self.blocks.len(), self.heads.kv_columns(), capacity)
    }

    /// Appends tokens to a sequence; returns the logits `[V]` of the last one's successor.
    ///
    /// # Errors
    /// As [`Decoder::loss_and_gradients`]; the sequence is longer than the cache was made for, or no token is given.
    pub fn decode(
        &self,
        tokens: &[u32],
        adapter: Option<&AdapterView>,
        cache: &mut KvCache,
    ) -> Result<Vec<f32>, ModelError> {
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
        let run = Run {
            spans: vec![Span { queries: 0..tokens.len(), keys: 0..after }],
            rope: self.rope(after),
            factors: Factors::prepare(self.frozen(), views(adapter), scope),
            rows: Rows::of_one(tokens.len(), Vec::new()),
        };
        let positions: Vec<u32> = (before as u32..after as u32).collect();
        let pass = self.pass(&run, &positions, scope);
        let mut x = self.embed(tokens, scope)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let (out, saved) = block.forward(x, self.factors(&run, i), pass, Some(cache.layer(i)))?;
            saved.recycle(scope)?;
            x = out;
        }
        cache.advance(tokens.len());
        run.factors.into_iter().flatten().for_each(|f| f.recycle(scope));
        self.head.logits(&x, &[tokens.len() as u32 - 1], scope)
    }

    /// The last block's output `[T, H]`.
    fn hidden(
        &self,
        batch: &PackedBatch,
        adapter: Option<&AdapterView>,
        scope: Scope,
    ) -> Result<Tensor, ModelError> {
        if let Some(adapter) = adapter {
            self.check_adapter(adapter, None)?;
        }
        let run = self.start(batch, adapter, scope)?;
        let pass = self.pass(&run, batch.positions(), scope);
        let mut x = self.embed(batch.inputs(), scope)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let (out, saved) = block.forward(x, self.factors(&run, i), pass, None)?;
            saved.recycle(scope)?;
            x = out;
        }
        run.factors.into_iter().flatten().for_each(|f| f.recycle(scope));
        Ok(x)
    }

    fn start<'a>(
        &self,
        batch: &PackedBatch,
        adapter: Option<&AdapterView<'a>>,
        scope: Scope,
    ) -> Result<Run<'a>, ModelError> {
        self.check_tokens(batch.inputs(), batch.longest())?;
        let spans = batch.spans().iter().map(|s| Span { queries: s.clone(), keys: s.clone() });
        Ok(Run {
            spans: spans.collect(),
            rope: self.rope(batch.longest()),
            factors: Factors::prepare(self.frozen(), views(adapter), scope),
            rows: Rows::of_one(batch.inputs().len(), Vec::new()),
        })
    }

    fn pass<'a>(&'a self, run: &'a Run, positions: &'a [u32], scope: Scope<'a>) -> Pass<'a> {
        let Run { spans, rope, rows, .. } = run;
        Pass { spans, positions, rope, rows, heads: self.heads, eps: self.eps, scope }
    }

    fn factors<'r, 'a>(&self, run: &'r Run<'a>, block: usize) -> &'r [Option<Factors<'a>>] {
        &run.factors[block * Slot::ALL.len()..][..Slot::ALL.len()]
    }

    /// The lowest block with an adapter, and how far down in it the backward pass must go.
    fn lowest(&self, factors: &[Option<Factors>]) -> Option<(usize, Until)> {
        let blocks = factors.chunks_exact(Slot::ALL.len()).enumerate();
        blocks.into_iter().find_map(|(i, block)| Until::lowest(block).map(|until| (i, until)))
    }

    fn embed(&self, tokens: &[u32], scope: Scope) -> Result<Tensor, ModelError> {
        let table = match &self.embedding {
            Some(rows) => Table::Rows(rows),
            None => Table::Packed(self.head.linear.rows()),
        };
        Ok(lookup(table, tokens, self.head.norm.len(), scope)?)
    }

    /// Rotation angles of at least that many positions; grows by doubling.
    fn rope(&self, len: usize) -> Arc<RopeTable> {
        let mut table = self.rope.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() < len {
            let len = len.next_power_of_two().min(self.max_positions);
            *table = Arc::new(RopeTable::new(&self.frequencies, len));
        }
        Arc::clone(&table)
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

    /// Every adapted module is one of the model's, of its size, and the buffers are as long as the layout.
    fn check_adapter(&self, adapter: &AdapterView, gradients: Option<usize>) -> Result<(), ModelError> {
        let problem =
            |module: &str, message: String| Err(ModelError::Adapter { module: module.to_owned(), message });
        for module in adapter.layout.modules() {
            let Some(linear) = self.frozen().find(|l| l.name == module.module) else {
                return problem(&module.module, "is for a layer that this model does not have".to_owned());
            };
            let (found, wanted) =
                ((module.in_features, module.out_features), (linear.in_features, linear.out_features));
            if found != wanted || module.rank == 0 {
                let message = format!("is {found:?} of rank {}, but the layer is {wanted:?}", module.rank);
                return problem(&module.module, message);
            }
        }
        let len = adapter.layout.len();
        if adapter.weights.len() != len || gradients.is_some_and(|g| g != len) {
            return problem("all modules", format!("needs buffers of {len} values"));
        }
        Ok(())
    }
}

/// The adapters of a pass.
fn views<'v, 'a>(adapter: Option<&'v AdapterView<'a>>) -> &'v [AdapterView<'a>] {
    adapter.map_or(&[], std::slice::from_ref)
}

fn linear(weights: &Weights, shape: &BaseShape, name: String) -> Result<FrozenLinear, ModelError> {
    let Some(module) = shape.linear(&name) else {
        return Err(ModelError::Tensor {
            name,
            message: "is not one of the base's linear layers".to_owned(),
        });
    };
    let bias = if module.bias { Some(weights.read(&format!("{name}.bias"))?) } else { None };
    let weight = weights.read(&format!("{name}.weight"))?;
    Ok(FrozenLinear::new(name, &weight, module.out_features, bias))
}
