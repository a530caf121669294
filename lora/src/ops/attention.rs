//! Attention over packed sequences, forward: `softmax(scale · q·kᵀ)·v` per head, never keeping T×T.
//!
//! Rows of queries are taken a few register tiles at a time against the keys that they see; of each row of scores the
//! largest and the inverse sum of exponentials are kept, from which the backward pass makes the probabilities again
//! (arXiv:2307.08691). How the work is cut between threads follows from the sequences' lengths, and changes no bit.

pub(crate) mod backward;
mod keys;
mod mask;
mod rows;
#[cfg(test)]
mod tests;
mod units;

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use keys::PackedKeys;
pub(crate) use mask::{Heads, Mask, Span};
use rows::{numerators, whole_lanes};

use super::kernel::{PANEL, ROWS};
use super::product::{Left, Right, serial};
use super::simd::vectorized;
use super::{OpError, Scope, matrix, view};

const OP: &str = "attention";

/// Queries that go together: they read each panel of keys while it is in the first cache.
const TILE: usize = 4 * ROWS;

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
        // SAFETY: inside the destination, by the assertion; not shared, by the caller's promise.
        scale_to(row, scale, unsafe { std::slice::from_raw_parts_mut(self.start.add(at), row.len()) });
    }
}

vectorized! {
    fn scale_to(row: &[f32], scale: f32, out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(row) {
            *out = x * scale;
        }
    }
}

/// Forward: `q` `[T, N·D]`, `k`, `v` `[T', K·D]` → the output `[T, N·D]` and each score row's largest value and inverse
/// sum of exponentials `[T, 2·N]`, which the backward pass needs.
pub(crate) fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spans: &[Span],
    heads: Heads,
    mask: Mask,
    scope: Scope,
) -> Result<(Tensor, Tensor), OpError> {
    let (q, k, v) = (view(OP, q)?, view(OP, k)?, view(OP, v)?);
    let tokens = q.len() / heads.q_columns();
    let mut out = scope.pool.take(q.len());
    let mut stats = scope.pool.take(2 * tokens * heads.heads);
    let keys = PackedKeys::new(&k, spans, heads, scope);
    let pass = Forward { q: &q, v: &v, keys: &keys, heads, mask, scope };
    let (to_out, to_stats) = (Scatter::new(&mut out), Scatter::new(&mut stats));
    tasks(spans, heads, mask).into_par_iter().with_max_len(1).for_each(|task| {
        pass.run(&spans[task.span], &task, &to_out, &to_stats);
    });
    keys.recycle(scope);
    Ok((matrix(out, heads.q_columns())?, matrix(stats, 2 * heads.heads)?))
}

/// Some queries of one head of one sequence: what one thread computes at a time.
struct Task {
    span: usize,
    head: usize,
    queries: Range<usize>,
    /// Pairs of query and key.
    cost: usize,
}

/// Least pairs of query and key that are worth a task of their own: about 30 µs of one core.
const LEAST_PAIRS: usize = 8 * 1024;
/// Tasks that a pass is cut into at least, where it has enough pairs.
const TASKS: usize = 64;

/// All tasks, the dearest first, so that threads end together.
fn tasks(spans: &[Span], heads: Heads, mask: Mask) -> Vec<Task> {
    let pairs: usize = spans.iter().map(|span| span.pairs(0..span.queries.len(), mask)).sum();
    let most = (pairs * heads.heads / TASKS).max(LEAST_PAIRS);
    let mut tasks = Vec::new();
    for (index, span) in spans.iter().enumerate() {
        for queries in span.cut(most, TILE, mask) {
            let cost = span.pairs(queries.clone(), mask);
            let one = |head| Task { span: index, head, queries: queries.clone(), cost };
            tasks.extend((0..heads.heads).map(one));
        }
    }
    tasks.sort_by_key(|task| std::cmp::Reverse(task.cost));
    tasks
}

/// What all tasks read.
struct Forward<'a> {
    q: &'a [f32],
    v: &'a [f32],
    keys: &'a PackedKeys,
    heads: Heads,
    mask: Mask,
    scope: Scope<'a>,
}

impl Forward<'_> {
    fn run(&self, span: &Span, task: &Task, out: &Scatter, stats: &Scatter) {
        let Self { heads, mask, scope, .. } = *self;
        let dim = heads.head_dim;
        let stride = whole_lanes(0..span.keys.len()).end;
        let mut scores = scope.pool.take(TILE * stride);
        let mut result = scope.pool.take(ROWS * dim);
        let mut flops = 0;
        for tile in task.queries.clone().step_by(TILE) {
            let tile = tile..(tile + TILE).min(task.queries.end);
            self.scores(span, task, tile.clone(), &mut scores, stride);
            for first in tile.clone().step_by(ROWS) {
                let rows = first..(first + ROWS).min(tile.end);
                let scores = &mut scores[(first - tile.start) * stride..];
                let seen = span.seen(rows.clone(), mask);
                let visible: [_; ROWS] = std::array::from_fn(|i| span.visible(first + i, mask));
                let softmax = numerators(
                    scores,
                    stride,
                    &visible[..rows.len()],
                    &whole_lanes(seen.clone()),
                    mask.softcap,
                );
                self.values(span, task, rows.len(), scores, stride, seen.clone(), &mut result);
                for (row, [max, inverse]) in rows.clone().zip(softmax) {
                    let token = span.queries.start + row;
                    let at = token * heads.q_columns() + task.head * dim;
                    let line = &result[(row - first) * dim..][..dim];
                    // SAFETY: this task alone owns this (token, head).
                    unsafe {
                        out.write(at, line, inverse);
                        stats.write(2 * (token * heads.heads + task.head), &[max, inverse], 1.0);
                    }
                }
                flops += 4 * rows.len() * seen.len() * dim;
            }
        }
        scope.flops.add(flops as u64);
        scope.pool.put(scores);
        scope.pool.put(result);
    }

    /// Scores of a tile of queries, of each row at least those that it sees.
    fn scores(&self, span: &Span, task: &Task, tile: Range<usize>, scores: &mut [f32], stride: usize) {
        let Self { heads, mask, .. } = *self;
        let (dim, columns) = (heads.head_dim, heads.q_columns());
        let seen = whole_lanes(span.seen(tile.clone(), mask));
        for panel in seen.start / PANEL..seen.end.div_ceil(PANEL) {
            let keys = self.keys.panel(task.span, task.head / heads.group(), panel);
            for first in tile.clone().step_by(ROWS) {
                let rows = first..(first + ROWS).min(tile.end);
                let seen = whole_lanes(span.seen(rows.clone(), mask));
                let from = seen.start.max(panel * PANEL);
                let end = seen.end.min((panel + 1) * PANEL);
                if from >= end {
                    continue;
                }
                let at = (span.queries.start + first) * columns + task.head * dim;
                let queries = Left::rows(&self.q[at..], columns);
                let keys = Right::Rows { data: &keys[from - panel * PANEL..], stride: PANEL };
                let to = &mut scores[(first - tile.start) * stride + from..];
                serial(to, stride, (rows.len(), end - from, dim), queries, keys, heads.scale, false);
            }
        }
    }

    /// `numerators · v` of some rows over the keys of `seen`; `numerators` begins at key 0.
    #[allow(clippy::too_many_arguments)]
    fn values(
        &self,
        span: &Span,
        task: &Task,
        rows: usize,
        numerators: &[f32],
        stride: usize,
        seen: Range<usize>,
        result: &mut [f32],
    ) {
        let Heads { head_dim: dim, .. } = self.heads;
        let columns = self.heads.kv_columns();
        let v = &self.v[span.keys.start * columns + task.head / self.heads.group() * dim..];
        sum_over_keys(result, dim, rows, seen, (numerators, stride), (v, columns));
    }
}

/// Keys that one chain of sums goes over; the next ones are added to its result.
const CHAIN: usize = 1024;

/// `left · right` over some keys: `left` is `[rows, keys]`, `right` `[keys, D]`, each with the distance of its rows, both
/// from key 0 on. Chains end at the same keys whatever else is seen.
fn sum_over_keys(
    result: &mut [f32],
    dim: usize,
    rows: usize,
    keys: Range<usize>,
    (left, left_stride): (&[f32], usize),
    (right, right_stride): (&[f32], usize),
) {
    let mut from = keys.start;
    while from < keys.end {
        let end = ((from / CHAIN + 1) * CHAIN).min(keys.end);
        let weights = Left::rows(&left[from..], left_stride);
        let values = Right::Rows { data: &right[from * right_stride..], stride: right_stride };
        serial(result, dim, (rows, dim, end - from), weights, values, 1.0, from > keys.start);
        from = end;
    }
}
