//! The beginning of the model: vectors of tokens, positions and token types, summed and normed.

use std::ops::Range;

use candle_core::Tensor;

use super::ModelError;
use super::parameters::{Bound, LinearId, NormId, views};
use super::pass::Pass;
use crate::linear::{Kept, embedding};
use crate::ops::add::add;
use crate::ops::embedding::{Table, lookup};
use crate::ops::scatter::scatter_add;
use crate::ops::{Scope, for_rows, into_vec, matrix, view};
use crate::params::AdapterView;

const OP: &str = "embedding";

/// Where the token vectors are kept.
#[derive(Debug)]
pub(crate) enum TokenTable {
    /// Row-major `[V, H]`.
    Rows(Vec<f32>),
    /// In the output head, which is tied to them.
    Head(LinearId),
}

/// Learned vectors of positions or token types, `[rows, H]`.
#[derive(Debug)]
pub(crate) struct Learned {
    /// Name of the tensor.
    pub name: String,
    /// Row-major.
    pub values: Vec<f32>,
    /// Row of the first.
    pub offset: usize,
}

/// The embeddings of the base.
#[derive(Debug)]
pub(crate) struct Embed {
    /// Name of the token embedding; its tensor is this plus `.weight`.
    pub name: String,
    pub tokens: TokenTable,
    pub vocabulary: usize,
    pub hidden: usize,
    /// What token vectors are multiplied by.
    pub scale: f32,
    pub positions: Option<Learned>,
    pub types: Option<Learned>,
    /// Of the sum.
    pub norm: Option<NormId>,
}

/// The tokens of a batch: which, where, and of which text.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub tokens: &'a [u32],
    pub positions: &'a [u32],
    /// Empty where all are of the first type.
    pub types: &'a [u32],
}

/// What is adapted or trained of the embeddings in one pass.
pub(crate) struct BoundEmbed<'a> {
    tokens: Option<(&'a [f32], Range<usize>)>,
    positions: Option<(&'a [f32], Range<usize>)>,
    types: Option<(&'a [f32], Range<usize>)>,
    adapter: Option<embedding::EmbeddingFactors<'a>>,
}

/// What the backward pass needs.
pub(crate) struct EmbedSaved {
    /// The sum before its norm, and the norm's statistics.
    normed: Option<(Tensor, Tensor)>,
    /// Of the adapter.
    kept: Option<Kept>,
}

impl<'a> BoundEmbed<'a> {
    /// Looks up what the adapter has of the embeddings.
    pub fn new(embed: &Embed, bound: &Bound, adapter: Option<&AdapterView<'a>>, scope: Scope) -> Self {
        let whole = |name: &str| adapter.and_then(|view| view.whole(name));
        let learned = |learned: &Option<Learned>| learned.as_ref().and_then(|learned| whole(&learned.name));
        let tokens = whole(&format!("{}.weight", embed.name));
        let table = embed.table(tokens.as_ref().map(|(values, _)| *values), bound);
        Self {
            adapter: embedding::EmbeddingFactors::prepare(&embed.name, table, views(adapter), scope),
            tokens,
            positions: learned(&embed.positions),
            types: learned(&embed.types),
        }
    }

    /// Whether something of them is trained.
    fn is_trained(&self) -> bool {
        self.tokens.is_some() || self.positions.is_some() || self.types.is_some() || self.adapter.is_some()
    }
}

impl Embed {
    /// Whether the backward pass must reach the embeddings.
    pub fn is_trained(&self, bound: &BoundEmbed, pass: &Pass) -> bool {
        bound.is_trained() || pass.trains_norm(self.norm)
    }

    /// Where the token vectors are read: those that are trained in the base's stead, or the base's.
    fn table<'t>(&'t self, trained: Option<&'t [f32]>, bound: &'t Bound) -> Table<'t> {
        match (trained, &self.tokens) {
            (Some(values), _) => Table::Rows(values),
            (None, TokenTable::Rows(values)) => Table::Rows(values),
            (None, TokenTable::Head(head)) => Table::Packed(bound.linear(*head).0.rows()),
        }
    }

    /// The first residual stream `[T, H]`, and what the backward pass needs.
    pub fn forward(
        &self,
        bound: &BoundEmbed,
        inputs: Inputs,
        pass: &Pass,
    ) -> Result<(Tensor, EmbedSaved), ModelError> {
        let scope = pass.scope;
        let table = self.table(bound.tokens.as_ref().map(|(values, _)| *values), pass.bound);
        let mut x = lookup(table, inputs.tokens, self.hidden, scope)?;
        let mut kept = None;
        if let Some(adapter) = &bound.adapter {
            let (adapted, of_adapter) = embedding::forward(x, inputs.tokens, adapter, pass.rows, scope)?;
            (x, kept) = (adapted, Some(of_adapter));
        }
        let mut x = into_vec(OP, x)?;
        if self.scale != 1.0 {
            for_rows(&mut x, self.hidden, |_, x| x.iter_mut().for_each(|x| *x *= self.scale));
        }
        if let Some(learned) = &self.positions {
            let values = bound.positions.as_ref().map_or(&learned.values[..], |(values, _)| values);
            self.add_rows(&mut x, values, |row| learned.offset + inputs.positions[row] as usize);
        }
        if let Some(learned) = &self.types {
            let values = bound.types.as_ref().map_or(&learned.values[..], |(values, _)| values);
            self.add_rows(&mut x, values, |row| type_of(inputs.types, row, values.len() / self.hidden));
        }
        let x = matrix(x, self.hidden)?;
        match self.norm {
            None => Ok((x, EmbedSaved { normed: None, kept })),
            Some(norm) => {
                let (y, stats) = pass.norm(norm).forward(&x, None, scope)?;
                Ok((y, EmbedSaved { normed: Some((x, stats)), kept }))
            }
        }
    }

    /// Adds a row of a table to each token's.
    fn add_rows(&self, x: &mut [f32], values: &[f32], row_of: impl Fn(usize) -> usize + Sync) {
        for_rows(x, self.hidden, |first, x| {
            for (i, x) in x.chunks_exact_mut(self.hidden).enumerate() {
                add(x, &values[row_of(first + i) * self.hidden..][..self.hidden]);
            }
        });
    }

    /// From the gradient `d` of the first residual stream: the gradients of what is trained, at their places.
    ///
    /// Where the head is tied and has written the token vectors' gradient, this adds to it (`head_wrote`).
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        bound: &BoundEmbed,
        saved: EmbedSaved,
        d: Tensor,
        inputs: Inputs,
        head_wrote: bool,
        gradients: &mut [f32],
        pass: &Pass,
    ) -> Result<(), ModelError> {
        let scope = pass.scope;
        let d = match (self.norm, &saved.normed) {
            (Some(norm), Some((x, stats))) => {
                let before = pass.norm(norm).backward(x, stats, &d, None, gradients, scope)?;
                scope.pool.recycle(d)?;
                before
            }
            _ => d,
        };
        {
            let d = view(OP, &d)?;
            let mut table = |place: &Range<usize>, rows: &[usize], keep: bool, scale: f32| {
                let table = &mut gradients[place.clone()];
                if !keep {
                    for_rows(table, self.hidden, |_, rows| rows.fill(0.0));
                }
                scatter_add(table, rows, &d, self.hidden, scale);
            };
            if let Some((_, place)) = &bound.tokens {
                let rows: Vec<usize> = inputs.tokens.iter().map(|&token| token as usize).collect();
                table(place, &rows, head_wrote, self.scale);
            }
            if let (Some((_, place)), Some(learned)) = (&bound.positions, &self.positions) {
                let rows: Vec<usize> =
                    inputs.positions.iter().map(|&p| learned.offset + p as usize).collect();
                table(place, &rows, false, 1.0);
            }
            if let Some((values, place)) = &bound.types {
                let known = values.len() / self.hidden;
                let rows: Vec<usize> =
                    (0..inputs.tokens.len()).map(|row| type_of(inputs.types, row, known)).collect();
                table(place, &rows, false, 1.0);
            }
        }
        if let (Some(adapter), Some(kept)) = (&bound.adapter, &saved.kept) {
            let scaled = self.scaled(&d, scope)?;
            embedding::backward(&scaled, inputs.tokens, adapter, kept, gradients, pass.rows, scope)?;
            scope.pool.recycle(scaled)?;
        }
        scope.pool.recycle(d)?;
        saved.recycle(scope)
    }

    /// `scale · d`.
    fn scaled(&self, d: &Tensor, scope: Scope) -> Result<Tensor, ModelError> {
        let d = view(OP, d)?;
        let mut scaled = scope.pool.take(d.len());
        scaled.iter_mut().zip(&*d).for_each(|(scaled, d)| *scaled = self.scale * d);
        Ok(matrix(scaled, self.hidden)?)
    }
}

impl EmbedSaved {
    /// Gives the buffers back.
    pub fn recycle(self, scope: Scope) -> Result<(), ModelError> {
        if let Some((x, stats)) = self.normed {
            scope.pool.recycle(x)?;
            scope.pool.recycle(stats)?;
        }
        if let Some(kept) = self.kept {
            kept.recycle(scope);
        }
        Ok(())
    }
}

/// A token's type, where the model knows that many.
fn type_of(types: &[u32], row: usize, known: usize) -> usize {
    types.get(row).map_or(0, |&kind| (kind as usize).min(known.saturating_sub(1)))
}
