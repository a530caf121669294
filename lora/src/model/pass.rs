//! What all parts of a model share in one pass over a batch.

use std::sync::Arc;

use super::parameters::{Bound, BoundNorm, NormId};
use crate::linear::Rows;
use crate::ops::Scope;
use crate::ops::attention::{Heads, Mask, Span};
use crate::ops::rope::RopeTable;

/// The rows of the last block's output that the head reads: its output layers compute only these.
#[derive(Clone, Copy)]
pub(crate) struct Narrow<'a> {
    /// In order.
    pub rows: &'a [u32],
    /// Whose they are.
    pub of: &'a Rows,
}

/// One pass: its tokens' places, the parameters that it reads, and its buffers.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    /// Parameters, and what is adapted or trained of them.
    pub bound: &'a Bound<'a>,
    /// The sequences.
    pub spans: &'a [Span],
    /// Each token's place in its sequence.
    pub positions: &'a [u32],
    /// The rotary embeddings of the model, long enough for the longest sequence.
    pub ropes: &'a [Arc<RopeTable>],
    /// Heads of attention.
    pub heads: Heads,
    /// What a token sees where a layer has no window.
    pub mask: Mask,
    /// Whose adapter each row takes, and which token it is.
    pub rows: &'a Rows,
    /// Buffers and the count of operations.
    pub scope: Scope<'a>,
}

impl<'a> Pass<'a> {
    /// A norm.
    pub fn norm(&self, id: NormId) -> &'a BoundNorm<'a> {
        self.bound.norm(id)
    }

    /// Whether a norm is there and trained.
    pub fn trains_norm(&self, id: Option<NormId>) -> bool {
        id.is_some_and(|id| self.norm(id).is_trained())
    }

    /// The same pass for some of the rows.
    pub fn narrowed(&self, narrow: Option<Narrow<'a>>) -> Self {
        Self { rows: narrow.map_or(self.rows, |narrow| narrow.of), ..*self }
    }

    /// Tokens of the batch.
    pub fn tokens(&self) -> usize {
        self.positions.len()
    }
}
