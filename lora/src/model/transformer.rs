//! The transformer: every family is this one, described by data; forward and backward by hand on packed batches.

use std::path::Path;
use std::sync::Arc;

use lorafleet_spec::BaseShape;
use lorafleet_spec::base::{HeadToken, Positions};
use lorafleet_spec::job::Precision;

use super::batch::Labels;
use super::block::Block;
use super::classifier::ClassifierHead;
use super::embed::{BoundEmbed, Embed, Inputs};
use super::known::Known;
use super::lm_head::LmHead;
use super::parameters::{Bound, Parameters};
use super::pass::{Narrow, Pass};
use super::{ModelError, PackedBatch, load};
use crate::linear::{FrozenLinear, Rows};
use crate::ops::Scope;
use crate::ops::attention::{Heads, Mask, Span};
use crate::ops::pool::Pool;
use crate::ops::rope::{RopeTable, Ropes};
use crate::params::AdapterView;

/// A loss that is summed over what is labelled, not averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSum {
    /// Sum of the losses: of labelled tokens, in nats, or of sequences with a class or a score.
    pub loss: f64,
    /// How many there are.
    pub labelled_tokens: usize,
}

/// A model whose weights are frozen. Every pass may run on several threads, and several passes at once: none changes
/// the model, and no result depends on how many threads there are.
#[derive(Debug)]
pub struct Transformer {
    pub(super) parts: Parts,
    pub(super) heads: Heads,
    pub(super) mask: Mask,
    pub(super) max_positions: usize,
    pub(super) ropes: Ropes,
    pub(super) pool: Pool,
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

/// What one pass holds.
pub(super) struct Run<'a> {
    pub bound: Bound<'a>,
    pub embed: BoundEmbed<'a>,
    pub spans: Vec<Span>,
    pub ropes: Vec<Arc<RopeTable>>,
    pub rows: Rows,
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

    /// The rows of the last block's output that the head reads, in order.
    pub(super) fn head_rows(&self, batch: &PackedBatch) -> Vec<u32> {
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

    /// Prepares a pass over a batch.
    pub(super) fn start<'a>(
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
        Ok(self.run(spans, batch.stretch(), rows, adapter, scope))
    }

    /// Prepares a pass over those sequences.
    pub(super) fn run<'a>(
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

    /// What the parts see of a pass.
    pub(super) fn pass<'r>(&'r self, run: &'r Run<'r>, positions: &'r [u32], scope: Scope<'r>) -> Pass<'r> {
        let Run { bound, spans, ropes, rows, .. } = run;
        Pass { bound, spans, positions, ropes, heads: self.heads, mask: self.mask, rows, scope }
    }

    /// Every token is in the vocabulary, and no sequence too long.
    pub(super) fn check_tokens(&self, tokens: &[u32], longest: usize) -> Result<(), ModelError> {
        if longest > self.max_positions {
            return Err(ModelError::TooLong { tokens: longest, positions: self.max_positions });
        }
        let vocabulary = self.vocabulary();
        match tokens.iter().find(|&&token| token as usize >= vocabulary) {
            Some(&token) => Err(ModelError::Token { token, vocabulary }),
            None => Ok(()),
        }
    }
}

pub(super) const NOT_A_CLASSIFIER: ModelError =
    ModelError::Task("the base is loaded as a language model, which predicts tokens, not classes or scores");
pub(super) const NOT_A_LANGUAGE_MODEL: ModelError =
    ModelError::Task("the base is loaded as a classifier, which predicts classes or scores, not tokens");

/// The rows that the head reads, where they are not all.
pub(super) fn narrow<'a>(rows: &'a [u32], of: &'a Rows, pass: &Pass) -> Option<Narrow<'a>> {
    (rows.len() < pass.tokens()).then_some(Narrow { rows, of })
}

/// The batch's tokens, as the embeddings read them.
pub(super) fn inputs(batch: &PackedBatch) -> Inputs<'_> {
    Inputs { tokens: batch.inputs(), positions: batch.positions(), types: batch.types() }
}
