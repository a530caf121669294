//! Cross-entropy of rows of logits (of a vocabulary, or of classes), whose gradient takes the logits' place.
//!
//! A row is read in blocks that stay in the first cache, with the largest value so far as the exponentials' reference
//! (arXiv:1805.02867), so that neither its maximum nor its sum needs a pass of its own.

use rayon::prelude::*;

use super::TASK;
use super::simd::{LANES, exp, sum_lanes, vectorized};
use super::special::tanh;

/// Sum over rows of `ln Σ exp(y) - y[target]`, in f64, rows in order.
///
/// `y` are the logits, or `c · tanh(logits / c)` with a softcap `c`; every target is below `vocabulary`.
pub(crate) fn forward(logits: &[f32], vocabulary: usize, targets: &[u32], softcap: Option<f32>) -> f64 {
    let losses: Vec<f64> = logits
        .par_chunks_exact(vocabulary)
        .zip(targets)
        .map(|(row, &target)| match softcap {
            None => loss(sum_exp(row), row[target as usize]),
            Some(cap) => loss(sum_exp_capped(row, cap), capped(row[target as usize], cap)),
        })
        .collect();
    losses.iter().sum()
}

/// As [`forward`], and each row becomes its gradient: `softmax(y) - onehot(target)`, times the softcap's derivative.
pub(crate) fn forward_backward(
    logits: &mut [f32],
    vocabulary: usize,
    targets: &[u32],
    softcap: Option<f32>,
) -> f64 {
    let losses: Vec<f64> = logits
        .par_chunks_exact_mut(vocabulary)
        .zip(targets)
        .map(|(row, &target)| {
            let target = target as usize;
            match softcap {
                None => {
                    let at_target = row[target];
                    let norm = softmax(row);
                    row[target] -= 1.0;
                    loss(norm, at_target)
                }
                Some(cap) => {
                    let norm = cap_row(row, cap);
                    let at_target = row[target];
                    let slope = slope(at_target, cap);
                    capped_gradient(row, norm, cap);
                    row[target] -= slope;
                    loss(norm, at_target)
                }
            }
        })
        .collect();
    losses.iter().sum()
}

/// Logits become `c · tanh(logits / c)`, for those who want logits and no loss.
pub(crate) fn softcap(logits: &mut [f32], cap: f32) {
    logits.par_chunks_mut(TASK).for_each(|logits| cap_values(logits, cap));
}

/// `Σ exp(y)` as `sum · exp(max)`, so that neither overflows.
#[derive(Clone, Copy)]
struct Norm {
    max: f32,
    sum: f32,
}

impl Norm {
    const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    /// Makes room for a block whose largest value is `best`.
    #[inline(always)]
    fn raise(&mut self, best: f32) {
        if best > self.max {
            self.sum *= exp(self.max - best);
            self.max = best;
        }
    }
}

fn loss(norm: Norm, at_target: f32) -> f64 {
    libm::log(f64::from(norm.sum)) + (f64::from(norm.max) - f64::from(at_target))
}

/// Most blocks of a row.
const BLOCKS: usize = 512;

/// Values of a block: 4 KB, or more where there would be too many blocks.
fn block(row: usize) -> usize {
    row.div_ceil(BLOCKS).next_multiple_of(LANES).max(1024)
}

#[inline(always)]
fn capped(x: f32, cap: f32) -> f32 {
    cap * tanh(x * (1.0 / cap))
}

/// The softcap's derivative, from its result.
#[inline(always)]
fn slope(y: f32, cap: f32) -> f32 {
    let t = y * (1.0 / cap);
    1.0 - t * t
}

/// The largest value that is a number.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (best, &x) in lanes.iter_mut().zip(chunk) {
            *best = if x > *best { x } else { *best };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |best, &x| if x > best { x } else { best })
}

/// `Σ exp(x - max)`.
#[inline(always)]
fn exponentials(x: &[f32], max: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, x) in lanes.iter_mut().zip(chunk) {
            *sum += exp(*x - max);
        }
    }
    for (sum, x) in lanes.iter_mut().zip(rest) {
        *sum += exp(*x - max);
    }
    sum_lanes(lanes)
}

/// Replaces each value by `exp(x - max)`; returns their sum, the same bits as [`exponentials`].
#[inline(always)]
fn replace_by_exponentials(x: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (sum, x) in lanes.iter_mut().zip(chunk) {
            *x = exp(*x - max);
            *sum += *x;
        }
    }
    for (sum, x) in lanes.iter_mut().zip(rest) {
        *x = exp(*x - max);
        *sum += *x;
    }
    sum_lanes(lanes)
}

vectorized! {
    fn sum_exp(row: &[f32]) -> Norm {
        let mut norm = Norm::EMPTY;
        for x in row.chunks(block(row.len())) {
            norm.raise(largest(x));
            norm.sum += exponentials(x, norm.max);
        }
        norm
    }
}

vectorized! {
    fn sum_exp_capped(row: &[f32], cap: f32) -> Norm {
        let mut norm = Norm::EMPTY;
        let mut values = [0f32; 1024];
        for x in row.chunks(values.len()) {
            let values = &mut values[..x.len()];
            for (y, x) in values.iter_mut().zip(x) {
                *y = capped(*x, cap);
            }
            norm.raise(largest(values));
            norm.sum += exponentials(values, norm.max);
        }
        norm
    }
}

vectorized! {
    /// The row becomes its softmax. Each block's exponentials refer to the largest value so far, and are scaled at the end.
    fn softmax(row: &mut [f32]) -> Norm {
        let mut norm = Norm::EMPTY;
        let mut references = [0f32; BLOCKS];
        let len = block(row.len());
        for (x, reference) in row.chunks_mut(len).zip(&mut references) {
            norm.raise(largest(x));
            norm.sum += replace_by_exponentials(x, norm.max);
            *reference = norm.max;
        }
        let inverse = 1.0 / norm.sum;
        for (x, reference) in row.chunks_mut(len).zip(references) {
            let factor = exp(reference - norm.max) * inverse;
            for x in x {
                *x *= factor;
            }
        }
        norm
    }
}

vectorized! {
    fn cap_values(x: &mut [f32], cap: f32) {
        for x in x {
            *x = capped(*x, cap);
        }
    }
}

vectorized! {
    /// The row becomes `c · tanh(x / c)`.
    fn cap_row(row: &mut [f32], cap: f32) -> Norm {
        let mut norm = Norm::EMPTY;
        for x in row.chunks_mut(1024) {
            for x in x.iter_mut() {
                *x = capped(*x, cap);
            }
            norm.raise(largest(x));
            norm.sum += exponentials(x, norm.max);
        }
        norm
    }
}

vectorized! {
    /// A row of capped logits becomes its softmax, times the softcap's derivative.
    fn capped_gradient(row: &mut [f32], norm: Norm, cap: f32) {
        let inverse = 1.0 / norm.sum;
        for y in row {
            *y = exp(*y - norm.max) * inverse * slope(*y, cap);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{check_gradient, noise, same_on_threads};

    /// By the definition, in f64.
    fn plain(logits: &[f32], vocabulary: usize, targets: &[u32], softcap: Option<f32>) -> f64 {
        let rows = logits.chunks_exact(vocabulary).zip(targets);
        let loss = |(row, &target): (&[f32], &u32)| {
            let y: Vec<f64> = row
                .iter()
                .map(|&x| f64::from(x))
                .map(|x| softcap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh()))
                .collect();
            y.iter().map(|y| y.exp()).sum::<f64>().ln() - y[target as usize]
        };
        rows.map(loss).sum()
    }

    #[test]
    fn gradient() {
        for (rows, vocabulary, softcap) in
            [(33, 131, None), (3, 5000, None), (33, 131, Some(3.0)), (2, 2500, Some(30.0)), (9, 2, None)]
        {
            let logits: Vec<f32> = noise(rows * vocabulary, 16).iter().map(|x| 5.0 * x).collect();
            let targets: Vec<u32> = (0..rows as u32).map(|i| i * 7 % vocabulary as u32).collect();
            let want = plain(&logits, vocabulary, &targets, softcap);
            let gradient = same_on_threads(|| {
                let mut gradient = logits.clone();
                let loss = forward_backward(&mut gradient, vocabulary, &targets, softcap);
                assert!((loss - want).abs() < 1e-5 * want, "{loss} and {want}");
                assert_eq!(loss, forward(&logits, vocabulary, &targets, softcap));
                gradient
            });
            check_gradient("logits", &logits, &gradient, |x| plain(x, vocabulary, &targets, softcap));
        }
    }

    #[test]
    fn a_maximum_at_the_end_raises_what_came_before() {
        let vocabulary = 600_000;
        let mut logits = vec![-40.0; vocabulary];
        for (i, x) in logits.iter_mut().enumerate() {
            *x += i as f32 / 10_000.0;
        }
        let want = plain(&logits, vocabulary, &[599_999], None);
        assert!((forward(&logits, vocabulary, &[599_999], None) - want).abs() < 1e-4);
        forward_backward(&mut logits, vocabulary, &[0], None);
        let sum: f64 = logits.iter().map(|&x| f64::from(x)).sum();
        assert!(sum.abs() < 1e-4, "a gradient's sum is zero: {sum}");
        assert!(logits[599_999] > 0.9 * logits[590_000] * std::f32::consts::E);
    }

    #[test]
    fn edges() {
        let uniform = forward(&[3.0; 131], 131, &[5], None);
        assert!((uniform - 131f64.ln()).abs() < 1e-6);
        let mut broken = noise(3000, 1);
        broken[2077] = f32::NAN;
        assert!(forward(&broken, 3000, &[0], None).is_nan(), "NaN reaches the loss");
        assert!(forward_backward(&mut broken, 3000, &[0], None).is_nan());
        assert!(forward(&[f32::INFINITY, 0.0], 2, &[1], None).is_nan());
    }
}
