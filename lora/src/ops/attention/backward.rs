//! Attention over packed sequences, backward: the probabilities are made again, block by block.
//!
//! With `P = exp(s - max) / sum`, `s = scale·q·kᵀ` (or its softcap) and `δ = Σ dout·out` per row (arXiv:2307.08691,
//! algorithm 2): `dv = Pᵀ·dout`, `dP = dout·vᵀ`, `dS = scale · P ∘ (dP - δ)`, `dq = dS·k`, `dk = dSᵀ·q`.

use std::ops::Range;

use candle_core::Tensor;

use super::keys::PackedKeys;
use super::mask::{Heads, Mask, Span};
use super::rows::{RowStats, probabilities, whole_lanes};
use super::units::{Unit, units};
use super::{Scatter, sum_over_keys};
use crate::ops::kernel::{PANEL, ROWS};
use crate::ops::product::{Left, Right, serial};
use crate::ops::simd::{dot, vectorized};
use crate::ops::{OpError, Scope, matrix, view};

const OP: &str = "attention backward";

/// Queries of one block: enough that adding into dk and dv costs little beside their products.
pub(super) const BLOCK: usize = 8 * ROWS;

/// What the forward pass kept.
pub(crate) struct Saved<'a> {
    pub q: &'a Tensor,
    pub k: &'a Tensor,
    pub v: &'a Tensor,
    pub out: &'a Tensor,
    /// Each score row's largest value and inverse sum, `[T, 2·N]`.
    pub stats: &'a Tensor,
}

/// Gradients of q `[T, N·D]`, k and v `[T, K·D]`.
pub(crate) struct Gradients {
    pub dq: Tensor,
    pub dk: Tensor,
    pub dv: Tensor,
}

/// Backward of [`super::forward`] for the gradient `dout` `[T, N·D]`.
pub(crate) fn backward(
    saved: &Saved,
    dout: &Tensor,
    spans: &[Span],
    heads: Heads,
    mask: Mask,
    scope: Scope,
) -> Result<Gradients, OpError> {
    let (q, k, v) = (view(OP, saved.q)?, view(OP, saved.k)?, view(OP, saved.v)?);
    let (out, stats, dout) = (view(OP, saved.out)?, view(OP, saved.stats)?, view(OP, dout)?);
    let mut dq = scope.pool.take(q.len());
    let mut dk = scope.pool.take(k.len());
    let mut dv = scope.pool.take(v.len());
    let keys = PackedKeys::new(&k, spans, heads, scope);
    let values = PackedKeys::new(&v, spans, heads, scope);
    let pass = Backward {
        q: &q,
        k: &k,
        out: &out,
        stats: &stats,
        dout: &dout,
        keys: &keys,
        values: &values,
        heads,
        mask,
        scope,
    };
    let to = [Scatter::new(&mut dq), Scatter::new(&mut dk), Scatter::new(&mut dv)];
    units(spans, heads, mask, scope, |unit, sums| pass.run(&spans[unit.span], unit, sums, &to[0]), &to[1..]);
    keys.recycle(scope);
    values.recycle(scope);
    Ok(Gradients {
        dq: matrix(dq, heads.q_columns())?,
        dk: matrix(dk, heads.kv_columns())?,
        dv: matrix(dv, heads.kv_columns())?,
    })
}

/// What all units read.
struct Backward<'a> {
    q: &'a [f32],
    k: &'a [f32],
    out: &'a [f32],
    stats: &'a [f32],
    dout: &'a [f32],
    keys: &'a PackedKeys,
    values: &'a PackedKeys,
    heads: Heads,
    mask: Mask,
    scope: Scope<'a>,
}

/// One block of queries of one head, with a unit's working memory.
struct Block<'s> {
    span: &'s Span,
    index: usize,
    head: usize,
    queries: Range<usize>,
    /// Keys that one of the queries sees, in whole vectors.
    seen: Range<usize>,
    stride: usize,
    /// P and then dS, `[BLOCK, stride]`.
    p: &'s mut [f32],
    ds: &'s mut [f32],
    /// dq of a register tile, `[ROWS, D]`.
    dq: &'s mut [f32],
}

impl Backward<'_> {
    /// Adds a unit's gradients of v and k to `sums` (two of `[keys, D]`), and writes its dq.
    fn run(&self, span: &Span, unit: &Unit, sums: [&mut [f32]; 2], to_dq: &Scatter) {
        let Self { heads, mask, scope, .. } = *self;
        let stride = whole_lanes(0..span.keys.len()).end;
        let mut p = scope.pool.take(BLOCK * stride);
        let mut ds = scope.pool.take(BLOCK * stride);
        let mut dq = scope.pool.take(ROWS * heads.head_dim);
        let [dk, dv] = sums;
        let mut flops = 0;
        for head in unit.heads.clone() {
            for first in unit.queries.clone().step_by(BLOCK) {
                let queries = first..(first + BLOCK).min(unit.queries.end);
                let seen = whole_lanes(span.seen(queries.clone(), mask));
                let (p, ds, dq) = (&mut p[..], &mut ds[..], &mut dq[..]);
                let mut block = Block { span, index: unit.span, head, queries, seen, stride, p, ds, dq };
                flops += self.block(&mut block, to_dq);
                flops += self.add(&block, dk, dv);
            }
        }
        scope.flops.add(flops as u64);
        for buffer in [p, ds, dq] {
            scope.pool.put(buffer);
        }
    }

    /// P, dS and dq of a block; returns the operations.
    fn block(&self, block: &mut Block, to_dq: &Scatter) -> usize {
        let (dim, columns) = (self.heads.head_dim, self.heads.q_columns());
        self.scores(block);
        let mut flops = 0;
        for first in block.queries.clone().step_by(ROWS) {
            let rows = first..(first + ROWS).min(block.queries.end);
            let keys = block.span.seen(rows.clone(), self.mask);
            let corner = (first - block.queries.start) * block.stride;
            let (p, ds) = (&mut block.p[corner..], &mut block.ds[corner..]);
            let stats: [RowStats; ROWS] =
                std::array::from_fn(|i| self.row(block.span, block.head, first + i));
            let softcap = self.mask.softcap;
            probabilities(p, ds, block.stride, &stats[..rows.len()], &block.seen, self.heads.scale, softcap);
            let kv_columns = self.heads.kv_columns();
            let k = &self.k[block.span.keys.start * kv_columns + block.head / self.heads.group() * dim..];
            sum_over_keys(block.dq, dim, rows.len(), keys.clone(), (ds, block.stride), (k, kv_columns));
            for (row, line) in rows.clone().zip(block.dq.chunks_exact(dim)) {
                let at = (block.span.queries.start + row) * columns + block.head * dim;
                // SAFETY: this unit alone owns this (token, head).
                unsafe { to_dq.write(at, line, 1.0) };
            }
            flops += 6 * rows.len() * keys.len() * dim;
        }
        flops
    }

    /// Scores and dP of a block, of each row at least those that it sees.
    fn scores(&self, block: &mut Block) {
        let (dim, columns, kv) =
            (self.heads.head_dim, self.heads.q_columns(), block.head / self.heads.group());
        for panel in block.seen.start / PANEL..block.seen.end.div_ceil(PANEL) {
            let keys = self.keys.panel(block.index, kv, panel);
            let values = self.values.panel(block.index, kv, panel);
            for first in block.queries.clone().step_by(ROWS) {
                let rows = first..(first + ROWS).min(block.queries.end);
                let seen = whole_lanes(block.span.seen(rows.clone(), self.mask));
                let (from, end) = (seen.start.max(panel * PANEL), seen.end.min((panel + 1) * PANEL));
                if from >= end {
                    continue;
                }
                let at = (block.span.queries.start + first) * columns + block.head * dim;
                let corner = (first - block.queries.start) * block.stride + from;
                let shape = (rows.len(), end - from, dim);
                let (k, v) = (&keys[from - panel * PANEL..], &values[from - panel * PANEL..]);
                let (q, dout) = (Left::rows(&self.q[at..], columns), Left::rows(&self.dout[at..], columns));
                let k = Right::Rows { data: k, stride: PANEL };
                let v = Right::Rows { data: v, stride: PANEL };
                serial(&mut block.p[corner..], block.stride, shape, q, k, self.heads.scale, false);
                serial(&mut block.ds[corner..], block.stride, shape, dout, v, 1.0, false);
            }
        }
    }

    /// What is known of one query's row; nothing behind the last query.
    fn row(&self, span: &Span, head: usize, query: usize) -> RowStats {
        if query >= span.queries.len() {
            return RowStats::default();
        }
        let (heads, token) = (self.heads, span.queries.start + query);
        let line = token * heads.q_columns() + head * heads.head_dim;
        let line = line..line + heads.head_dim;
        let at = 2 * (token * heads.heads + head);
        RowStats {
            visible: span.visible(query, self.mask),
            max: self.stats[at],
            inverse: self.stats[at + 1],
            delta: row_dot(&self.dout[line.clone()], &self.out[line]),
        }
    }

    /// Adds a block to dk and dv: all of its queries for keys that all of them see, and fewer for those at the edges.
    fn add(&self, block: &Block, dk: &mut [f32], dv: &mut [f32]) -> usize {
        let (span, queries) = (block.span, &block.queries);
        let seen = span.seen(queries.clone(), self.mask);
        let by_all =
            span.visible(queries.end - 1, self.mask).start..span.visible(queries.start, self.mask).end;
        let by_all = if by_all.is_empty() { seen.start..seen.start } else { by_all };
        let mut flops = 0;
        if !by_all.is_empty() {
            flops += self.add_keys(block, by_all.clone(), queries.clone(), dk, dv);
        }
        for edge in [seen.start..by_all.start, by_all.end..seen.end] {
            for key in edge.clone().step_by(ROWS) {
                let keys = key..(key + ROWS).min(edge.end);
                let seeing = span.seeing(keys.clone(), self.mask);
                let seeing = seeing.start.max(queries.start)..seeing.end.min(queries.end);
                flops += self.add_keys(block, keys, seeing, dk, dv);
            }
        }
        flops
    }

    /// Adds some queries of a block to dk and dv of some keys; returns the operations.
    fn add_keys(
        &self,
        block: &Block,
        keys: Range<usize>,
        queries: Range<usize>,
        dk: &mut [f32],
        dv: &mut [f32],
    ) -> usize {
        let (dim, columns) = (self.heads.head_dim, self.heads.q_columns());
        let at = (block.span.queries.start + queries.start) * columns + block.head * dim;
        let shape = (keys.len(), dim, queries.len());
        let corner = (queries.start - block.queries.start) * block.stride + keys.start;
        let place = keys.start * dim..keys.end * dim;
        let p = Left::transposed(&block.p[corner..], block.stride);
        let ds = Left::transposed(&block.ds[corner..], block.stride);
        let dout = Right::Rows { data: &self.dout[at..], stride: columns };
        let q = Right::Rows { data: &self.q[at..], stride: columns };
        serial(&mut dv[place.clone()], dim, shape, p, dout, 1.0, true);
        serial(&mut dk[place], dim, shape, ds, q, 1.0, true);
        4 * keys.len() * queries.len() * dim
    }
}

vectorized! {
    fn row_dot(a: &[f32], b: &[f32]) -> f32 {
        dot(a, b)
    }
}
