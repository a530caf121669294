//! Cross-entropy of rows of logits, whose gradient takes the logits' place.

use rayon::prelude::*;

use super::simd::{LANES, exp, reduce, sum_lanes, vectorized};

/// Sum over rows of `ln Σ exp(logits) - logits[target]`, in f64, rows in order.
pub(crate) fn forward(logits: &[f32], vocabulary: usize, targets: &[u32]) -> f64 {
    let losses: Vec<f64> = logits
        .par_chunks_exact(vocabulary)
        .zip(targets)
        .map(|(row, &target)| {
            let max = largest(row);
            loss(max, sum_exp(row, max), row[target as usize])
        })
        .collect();
    losses.iter().sum()
}

/// As [`forward`], and each row becomes its gradient: `softmax(row) - onehot(target)`.
pub(crate) fn forward_backward(logits: &mut [f32], vocabulary: usize, targets: &[u32]) -> f64 {
    let losses: Vec<f64> = logits
        .par_chunks_exact_mut(vocabulary)
        .zip(targets)
        .map(|(row, &target)| {
            let max = largest(row);
            let at_target = row[target as usize];
            let sum = exponentials(row, max);
            scale(row, 1.0 / sum);
            row[target as usize] -= 1.0;
            loss(max, sum, at_target)
        })
        .collect();
    losses.iter().sum()
}

fn loss(max: f32, sum: f32, at_target: f32) -> f64 {
    libm::log(f64::from(sum)) + (f64::from(max) - f64::from(at_target))
}

vectorized! {
    /// The largest value; NaN where one is among them, so that it reaches the loss.
    pub(crate) fn largest(row: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = row.as_chunks::<LANES>();
        for chunk in chunks {
            for (best, &x) in lanes.iter_mut().zip(chunk) {
                *best = if x <= *best { *best } else { x };
            }
        }
        let mut best = f32::NEG_INFINITY;
        for &x in lanes.iter().chain(rest) {
            best = if x <= best || best.is_nan() { best } else { x };
        }
        best
    }
}

vectorized! {
    /// `Σ exp(x - max)`.
    fn sum_exp(row: &[f32], max: f32) -> f32 {
        reduce(row, |x| exp(x - max))
    }
}

vectorized! {
    /// Replaces each value by `exp(x - max)`; returns their sum.
    pub(crate) fn exponentials(row: &mut [f32], max: f32) -> f32 {
        let mut lanes = [0f32; LANES];
        let (chunks, rest) = row.as_chunks_mut::<LANES>();
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
}

vectorized! {
    fn scale(row: &mut [f32], factor: f32) {
        for x in row {
            *x *= factor;
        }
    }
}
