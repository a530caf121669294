//! Rows of scores, whole vectors at a time: softmax's numerators forward, probabilities and their gradients backward.

use std::ops::Range;

use crate::ops::kernel::ROWS;
use crate::ops::simd::{LANES, exp, sum_lanes, vectorized};
use crate::ops::special::tanh;

/// The smallest range of whole vectors around `keys`.
pub(crate) fn whole_lanes(keys: Range<usize>) -> Range<usize> {
    keys.start / LANES * LANES..keys.end.next_multiple_of(LANES)
}

/// Splits a row, which starts at key 0, into what lies before the vectors around `visible`, those, and what lies behind.
#[inline(always)]
fn split<'a>(row: &'a mut [f32], visible: &Range<usize>) -> [&'a mut [f32]; 3] {
    let (start, end) = (visible.start / LANES * LANES, visible.end.next_multiple_of(LANES));
    let (before, row) = row.split_at_mut(start);
    let (row, behind) = row.split_at_mut(end - start);
    [before, row, behind]
}

/// Puts `value` where a row's vectors reach past what is visible.
#[inline(always)]
fn hide(row: &mut [f32], visible: &Range<usize>, value: f32) {
    let start = visible.start / LANES * LANES;
    row[..visible.start - start].fill(value);
    row[visible.end - start..].fill(value);
}

/// `c · tanh(x / c)` of every score.
#[inline(always)]
fn bound(row: &mut [f32], cap: f32) {
    let inverse = 1.0 / cap;
    for x in row {
        *x = cap * tanh(*x * inverse);
    }
}

/// The largest value of whole vectors.
#[inline(always)]
fn largest(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in row.as_chunks::<LANES>().0 {
        for (best, &x) in lanes.iter_mut().zip(chunk) {
            *best = if x > *best { x } else { *best };
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = if lanes[i + width] > lanes[i] { lanes[i + width] } else { lanes[i] };
        }
        width /= 2;
    }
    lanes[0]
}

/// Replaces scores by `exp(x - max)`; returns their sum.
#[inline(always)]
fn exponentials(row: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    for chunk in row.as_chunks_mut::<LANES>().0 {
        for (sum, x) in lanes.iter_mut().zip(chunk) {
            *x = exp(*x - max);
            *sum += *x;
        }
    }
    sum_lanes(lanes)
}

vectorized! {
    /// Rows of scores, `stride` apart, become `exp(x - max)`, and zero within `seen` where a row does not see.
    ///
    /// Returns each row's max and the inverse of its sum. `seen` consists of whole vectors around all of `visible`.
    pub(crate) fn numerators(
        scores: &mut [f32],
        stride: usize,
        visible: &[Range<usize>],
        seen: &Range<usize>,
        softcap: Option<f32>,
    ) -> [[f32; 2]; ROWS] {
        let mut stats = [[0.0; 2]; ROWS];
        for (i, (visible, stats)) in visible.iter().zip(&mut stats).enumerate() {
            let [before, row, behind] = split(&mut scores[i * stride..][..seen.end], visible);
            before[seen.start..].fill(0.0);
            behind.fill(0.0);
            if let Some(cap) = softcap {
                bound(row, cap);
            }
            hide(row, visible, f32::NEG_INFINITY);
            let max = largest(row);
            *stats = [max, 1.0 / exponentials(row, max)];
        }
        stats
    }
}

/// What the backward pass knows of one row.
#[derive(Clone, Debug, Default)]
pub(crate) struct RowStats {
    /// Keys that it sees.
    pub visible: Range<usize>,
    /// The largest score.
    pub max: f32,
    /// The inverse of the sum of `exp(score - max)`.
    pub inverse: f32,
    /// `Σ dout·out`.
    pub delta: f32,
}

vectorized! {
    /// Rows of scores become probabilities P, and rows of dP become dS, the gradient of `q·kᵀ`; zero within `seen` where
    /// a row does not see.
    pub(crate) fn probabilities(
        p: &mut [f32],
        ds: &mut [f32],
        stride: usize,
        rows: &[RowStats],
        seen: &Range<usize>,
        scale: f32,
        softcap: Option<f32>,
    ) {
        for (i, row) in rows.iter().enumerate() {
            let RowStats { visible, max, inverse, delta } = row.clone();
            let [before, p, behind] = split(&mut p[i * stride..][..seen.end], &visible);
            before[seen.start..].fill(0.0);
            behind.fill(0.0);
            let [before, ds, behind] = split(&mut ds[i * stride..][..seen.end], &visible);
            before[seen.start..].fill(0.0);
            behind.fill(0.0);
            match softcap {
                None => {
                    for (p, ds) in p.iter_mut().zip(&mut *ds) {
                        *p = exp(*p - max) * inverse;
                        *ds = *p * (*ds - delta) * scale;
                    }
                }
                Some(cap) => {
                    for (p, ds) in p.iter_mut().zip(&mut *ds) {
                        let t = tanh(*p * (1.0 / cap));
                        *p = exp(cap * t - max) * inverse;
                        *ds = *p * (*ds - delta) * scale * (1.0 - t * t);
                    }
                }
            }
            hide(p, &visible, 0.0);
            hide(ds, &visible, 0.0);
        }
    }
}
