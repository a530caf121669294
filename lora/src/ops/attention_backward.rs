//! Causal attention over packed sequences, backward: the probabilities are made again, block by block.
//!
//! With `P = exp(scale·q·kᵀ - lse)` and `δ = Σ dout·out` per row (arXiv:2307.08691, algorithm 2):
//! `dv = Pᵀ·dout`, `dP = dout·vᵀ`, `dS = scale · P ∘ (dP - δ)`, `dq = dS·k`, `dk = dSᵀ·q`.

use candle_core::Tensor;
use rayon::prelude::*;

use super::attention::{Heads, Scatter, Span, tasks, transpose_head};
use super::kernel::ROWS;
use super::product::{Left, Right, serial};
use super::simd::{dot, exp, vectorized};
use super::{OpError, Scope, matrix, view};

const OP: &str = "attention backward";

/// Queries of one block: enough that adding into dk and dv costs little beside their products.
const BLOCK: usize = 4 * ROWS;

/// What the forward pass kept.
pub(crate) struct Saved<'a> {
    pub q: &'a Tensor,
    pub k: &'a Tensor,
    pub v: &'a Tensor,
    pub out: &'a Tensor,
    pub lse: &'a Tensor,
}

/// Gradients of q `[T, N·D]`, k and v `[T, K·D]`.
pub(crate) struct Gradients {
    pub dq: Tensor,
    pub dk: Tensor,
    pub dv: Tensor,
}

/// Backward of [`super::attention::forward`] for the gradient `dout` `[T, N·D]`; queries and keys are the same tokens.
pub(crate) fn backward(
    saved: &Saved,
    dout: &Tensor,
    spans: &[Span],
    heads: Heads,
    scope: Scope,
) -> Result<Gradients, OpError> {
    let (q, k, v) = (view(OP, saved.q)?, view(OP, saved.k)?, view(OP, saved.v)?);
    let (out, lse, dout) = (view(OP, saved.out)?, view(OP, saved.lse)?, view(OP, dout)?);
    let mut dq = scope.pool.take(q.len());
    let mut dk = scope.pool.take(k.len());
    let mut dv = scope.pool.take(v.len());
    let to = [Scatter::new(&mut dq), Scatter::new(&mut dk), Scatter::new(&mut dv)];
    tasks(spans, heads).into_par_iter().with_max_len(1).for_each(|(span, kv)| {
        Task { q: &q, k: &k, v: &v, out: &out, lse: &lse, dout: &dout, span, kv, heads, scope }.run(&to);
    });
    Ok(Gradients {
        dq: matrix(dq, heads.q_columns())?,
        dk: matrix(dk, heads.kv_columns())?,
        dv: matrix(dv, heads.kv_columns())?,
    })
}

/// One key/value head of one sequence.
struct Task<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    lse: &'a [f32],
    dout: &'a [f32],
    span: &'a Span,
    kv: usize,
    heads: Heads,
    scope: Scope<'a>,
}

/// A task's working memory. T is the sequence's length here.
struct Scratch {
    /// kᵀ and vᵀ, `[D, T]`.
    k: Vec<f32>,
    v: Vec<f32>,
    /// Sums of dk and dv, `[T, D]`.
    dk: Vec<f32>,
    dv: Vec<f32>,
    /// P and then dS of a block of queries, `[BLOCK, T]`.
    p: Vec<f32>,
    ds: Vec<f32>,
    /// dq of a tile, `[ROWS, D]`.
    dq: Vec<f32>,
}

impl Task<'_> {
    fn run(&self, [to_dq, to_dk, to_dv]: &[Scatter; 3]) {
        let Self { heads, kv, span, scope, .. } = *self;
        let (dim, len, columns) = (heads.head_dim, span.keys.len(), heads.kv_columns());
        let take = |n: usize| scope.pool.take(n);
        let mut s = Scratch {
            k: take(dim * len),
            v: take(dim * len),
            dk: take(len * dim),
            dv: take(len * dim),
            p: take(BLOCK * len),
            ds: take(BLOCK * len),
            dq: take(ROWS * dim),
        };
        transpose_head(self.k, columns, kv * dim, &span.keys, &mut s.k);
        transpose_head(self.v, columns, kv * dim, &span.keys, &mut s.v);
        s.dk.fill(0.0);
        s.dv.fill(0.0);
        for head in kv * heads.group()..(kv + 1) * heads.group() {
            for first in (0..len).step_by(BLOCK) {
                let end = (first + BLOCK).min(len);
                for tile in (first..end).step_by(ROWS) {
                    let rows = (end - tile).min(ROWS);
                    self.tile(head, first, tile, rows, end, &mut s, to_dq);
                }
                self.add_block(head, first, end, &mut s);
            }
        }
        for (row, token) in span.keys.clone().enumerate() {
            let at = token * columns + kv * dim;
            // SAFETY: this task alone owns this (token, key/value head).
            unsafe {
                to_dk.write(at, &s.dk[row * dim..][..dim], 1.0);
                to_dv.write(at, &s.dv[row * dim..][..dim], 1.0);
            }
        }
        for buffer in [s.k, s.v, s.dk, s.dv, s.p, s.ds, s.dq] {
            scope.pool.put(buffer);
        }
    }

    /// P, dS and dq of one tile of rows, of the block that goes from `first` to `end`.
    #[allow(clippy::too_many_arguments)]
    fn tile(
        &self,
        head: usize,
        first: usize,
        tile: usize,
        rows: usize,
        end: usize,
        s: &mut Scratch,
        dq: &Scatter,
    ) {
        let Self { heads, span, .. } = *self;
        let (dim, len, columns) = (heads.head_dim, span.keys.len(), heads.q_columns());
        let seen = tile + rows;
        let at = (span.queries.start + tile) * columns + head * dim;
        let (p, ds) = (&mut s.p[(tile - first) * len..], &mut s.ds[(tile - first) * len..]);
        let (queries, dout) = (Left::rows(&self.q[at..], columns), Left::rows(&self.dout[at..], columns));
        let shape = (rows, seen, dim);
        serial(p, len, shape, queries, Right::Rows { data: &s.k, stride: len }, heads.scale, false);
        serial(ds, len, shape, dout, Right::Rows { data: &s.v, stride: len }, 1.0, false);
        for row in 0..rows {
            let line = at + row * columns;
            let delta = row_dot(&self.dout[line..line + dim], &self.out[line..line + dim]);
            let lse = self.lse[(span.queries.start + tile + row) * heads.heads + head];
            let (visible, all) = (tile + row + 1, row * len..row * len + end);
            let (p, ds) = (&mut p[all.clone()], &mut ds[all]);
            probabilities(&mut p[..visible], &mut ds[..visible], lse, delta, heads.scale);
            p[visible..].fill(0.0);
            ds[visible..].fill(0.0);
        }
        let keys = &self.k[span.keys.start * heads.kv_columns() + self.kv * dim..];
        let keys = Right::Rows { data: keys, stride: heads.kv_columns() };
        serial(&mut s.dq, dim, (rows, dim, seen), Left::rows(ds, len), keys, 1.0, false);
        self.scope.flops.product(rows, seen, 3 * dim);
        for row in 0..rows {
            // SAFETY: this task alone owns this (token, head).
            unsafe { dq.write(at + row * columns, &s.dq[row * dim..][..dim], 1.0) };
        }
    }

    /// Adds a block of queries to dk and dv: all of them for earlier keys, only the later ones within the block.
    fn add_block(&self, head: usize, first: usize, end: usize, s: &mut Scratch) {
        let (heads, len, dim) = (self.heads, self.span.keys.len(), self.heads.head_dim);
        let columns = heads.q_columns();
        let mut add = |keys: std::ops::Range<usize>, from: usize| {
            let at = (self.span.queries.start + from) * columns + head * dim;
            let shape = (keys.len(), dim, end - from);
            let corner = (from - first) * len + keys.start;
            let place = keys.start * dim..keys.end * dim;
            let dout = Right::Rows { data: &self.dout[at..], stride: columns };
            serial(
                &mut s.dv[place.clone()],
                dim,
                shape,
                Left::transposed(&s.p[corner..], len),
                dout,
                1.0,
                true,
            );
            let queries = Right::Rows { data: &self.q[at..], stride: columns };
            serial(&mut s.dk[place], dim, shape, Left::transposed(&s.ds[corner..], len), queries, 1.0, true);
            self.scope.flops.product(keys.len(), end - from, 2 * dim);
        };
        add(0..first, first);
        for key in (first..end).step_by(ROWS) {
            add(key..(key + ROWS).min(end), key);
        }
    }
}

vectorized! {
    fn row_dot(a: &[f32], b: &[f32]) -> f32 {
        dot(a, b)
    }
}

vectorized! {
    /// Scores become probabilities and dP becomes dS, for one row.
    fn probabilities(p: &mut [f32], ds: &mut [f32], lse: f32, delta: f32, scale: f32) {
        for (p, ds) in p.iter_mut().zip(ds) {
            *p = exp(*p - lse);
            *ds = *p * (*ds - delta) * scale;
        }
    }
}
