//! Keys or values of every sequence and head, transposed into panels that fit the first cache.

use std::ops::Range;

use rayon::prelude::*;

use super::mask::{Heads, Span};
use crate::ops::Scope;
use crate::ops::kernel::PANEL;
use crate::ops::transpose::{Block, words};

/// `[D, PANEL]` for each panel of keys of each key/value head of each sequence; zero past the last key.
pub(crate) struct PackedKeys {
    panels: Vec<f32>,
    /// First panel of each sequence.
    starts: Vec<usize>,
    /// Panels of one head of each sequence.
    counts: Vec<usize>,
    size: usize,
}

impl PackedKeys {
    /// Packs the sequences' rows of `x` `[T, K·D]`.
    pub fn new(x: &[f32], spans: &[Span], heads: Heads, scope: Scope) -> Self {
        let counts: Vec<usize> = spans.iter().map(|span| span.keys.len().div_ceil(PANEL)).collect();
        let mut total = 0;
        let mut starts = Vec::with_capacity(spans.len());
        for count in &counts {
            starts.push(total);
            total += count * heads.kv_heads;
        }
        let size = heads.head_dim * PANEL;
        let mut panels = scope.pool.take(total * size);
        let mut places = Vec::with_capacity(total);
        for (span, count) in spans.iter().zip(&counts) {
            for kv in 0..heads.kv_heads {
                let keys = |p: usize| span.keys.start + p * PANEL..(span.keys.start + (p + 1) * PANEL);
                places.extend((0..*count).map(|p| (kv, keys(p).start..keys(p).end.min(span.keys.end))));
            }
        }
        let columns = heads.kv_columns();
        panels.par_chunks_exact_mut(size.max(1)).zip(places).with_min_len(8).for_each(
            |(panel, (kv, keys))| {
                transpose(&x[kv * heads.head_dim..], columns, keys, panel);
            },
        );
        Self { panels, starts, counts, size }
    }

    /// `[D, PANEL]` of one panel.
    pub fn panel(&self, span: usize, kv: usize, panel: usize) -> &[f32] {
        &self.panels[(self.starts[span] + kv * self.counts[span] + panel) * self.size..][..self.size]
    }

    /// Gives the buffer back.
    pub fn recycle(self, scope: Scope) {
        scope.pool.put(self.panels);
    }
}

/// Transposes rows `keys` of `x`, `columns` apart, into a panel.
fn transpose(x: &[f32], columns: usize, keys: Range<usize>, panel: &mut [f32]) {
    let (rows, dim) = (keys.len(), panel.len() / PANEL);
    let block = Block { words: &x[keys.start * columns..], stride: columns, rows, columns: dim };
    words(block, panel, PANEL);
    for line in panel.chunks_exact_mut(PANEL) {
        line[rows..].fill(0.0);
    }
}
