//! Causal attention over packed sequences, forward: `softmax(scale · q·kᵀ)·v` per head, never keeping T×T.
//!
//! Rows of queries are taken a register tile at a time against the keys that they may see; each row's
//! log-sum-exp is kept, from which the backward pass makes the probabilities again (arXiv:2307.08691).

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use super::cross_entropy::{exponentials, largest};
use super::kernel::ROWS;
use super::product::{Left, Right, serial};
use super::{OpError, Scope, matrix, view};

const OP: &str = "attention";

/// Head counts and the scale of the scores. Query head n reads key/value head `n · kv_heads / heads`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
}

impl Heads {
    /// Width of q's rows.
    pub fn q_columns(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of k's and v's rows.
    pub fn kv_columns(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Query heads that share one key/value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// One sequence: its rows in q and in k, v. The last query sees every key, the one before all but the last, …
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub queries: Range<usize>,
    pub keys: Range<usize>,
}

impl Span {
    /// Keys that the query at this place in the sequence sees.
    pub fn visible(&self, query: usize) -> usize {
        self.keys.len() - self.queries.len() + query + 1
    }
}

/// A destination of which tasks write disjoint rows of disjoint heads.
pub(crate) struct Scatter {
    start: *mut f32,
    len: usize,
}

// SAFETY: tasks write disjoint elements, see `Scatter::write`.
unsafe impl Sync for Scatter {}

impl Scatter {
    pub fn new(values: &mut [f32]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len() }
    }

    /// Writes `scale · row` at an offset.
    ///
    /// # Safety
    /// The destination outlives the call, and no two threads write the same place.
    pub unsafe fn write(&self, at: usize, row: &[f32], scale: f32) {
        assert!(at + row.len() <= self.len, "a row of a head");
        for (i, x) in row.iter().enumerate() {
            // SAFETY: inside the destination, by the assertion; not shared, by the caller's promise.
            unsafe { *self.start.add(at + i) = x * scale };
        }
    }
}

/// Forward: `q` `[T, N·D]`, `k`, `v` `[T', K·D]` → the output `[T, N·D]` and the log-sum-exp of each score row `[T, N]`.
pub(crate) fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spans: &[Span],
    heads: Heads,
    scope: Scope,
) -> Result<(Tensor, Tensor), OpError> {
    let (q, k, v) = (view(OP, q)?, view(OP, k)?, view(OP, v)?);
    let tokens = q.len() / heads.q_columns();
    let mut out = scope.pool.take(q.len());
    let mut lse = scope.pool.take(tokens * heads.heads);
    let (to_out, to_lse) = (Scatter::new(&mut out), Scatter::new(&mut lse));
    tasks(spans, heads).into_par_iter().with_max_len(1).for_each(|(span, kv)| {
        forward_task(&q, &k, &v, span, kv, heads, scope, &to_out, &to_lse);
    });
    Ok((matrix(out, heads.q_columns())?, matrix(lse, heads.heads)?))
}

/// Every (sequence, key/value head): what one thread computes at a time.
pub(crate) fn tasks(spans: &[Span], heads: Heads) -> Vec<(&Span, usize)> {
    spans.iter().flat_map(|span| (0..heads.kv_heads).map(move |kv| (span, kv))).collect()
}

/// Transposes rows `rows` of one head out of `[T, columns]`: `[D, rows]`.
pub(crate) fn transpose_head(x: &[f32], columns: usize, first: usize, rows: &Range<usize>, out: &mut [f32]) {
    let len = rows.len();
    let dim = out.len() / len.max(1);
    for (i, row) in rows.clone().enumerate() {
        for (d, &value) in x[row * columns + first..][..dim].iter().enumerate() {
            out[d * len + i] = value;
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn forward_task(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    span: &Span,
    kv: usize,
    heads: Heads,
    scope: Scope,
    out: &Scatter,
    lse: &Scatter,
) {
    let Heads { head_dim: dim, .. } = heads;
    let (q_columns, kv_columns, keys) = (heads.q_columns(), heads.kv_columns(), span.keys.len());
    let mut k_transposed = scope.pool.take(dim * keys);
    transpose_head(k, kv_columns, kv * dim, &span.keys, &mut k_transposed);
    let v = &v[span.keys.start * kv_columns + kv * dim..];
    let mut scores = scope.pool.take(ROWS * keys);
    let mut result = scope.pool.take(ROWS * dim);
    for head in kv * heads.group()..(kv + 1) * heads.group() {
        for first in (0..span.queries.len()).step_by(ROWS) {
            let rows = (span.queries.len() - first).min(ROWS);
            let seen = span.visible(first + rows - 1);
            let token = span.queries.start + first;
            let queries = Left::rows(&q[token * q_columns + head * dim..], q_columns);
            let all_keys = Right::Rows { data: &k_transposed, stride: keys };
            serial(&mut scores, keys, (rows, seen, dim), queries, all_keys, heads.scale, false);
            let mut sums = [0f32; ROWS];
            for (row, sum) in sums.iter_mut().enumerate().take(rows) {
                let visible = span.visible(first + row);
                let (scores, hidden) = scores[row * keys..][..seen].split_at_mut(visible);
                let max = largest(scores);
                *sum = exponentials(scores, max);
                hidden.fill(0.0);
                let value = f64::from(max) + libm::log(f64::from(*sum));
                // SAFETY: this task alone owns this (token, head).
                unsafe { lse.write((token + row) * heads.heads + head, &[value as f32], 1.0) };
            }
            let probabilities = Left::rows(&scores, keys);
            let values = Right::Rows { data: v, stride: kv_columns };
            serial(&mut result, dim, (rows, dim, seen), probabilities, values, 1.0, false);
            scope.flops.product(rows, seen, 2 * dim);
            for (row, sum) in sums.iter().enumerate().take(rows) {
                let at = (token + row) * q_columns + head * dim;
                // SAFETY: this task alone owns this (token, head).
                unsafe { out.write(at, &result[row * dim..][..dim], 1.0 / sum) };
            }
        }
    }
    for buffer in [k_transposed, scores, result] {
        scope.pool.put(buffer);
    }
}
