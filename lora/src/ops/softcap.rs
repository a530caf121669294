//! Soft caps of logits: `y = c · tanh(x / c)`, in place; backward from the result: `dx = dy · (1 - (y/c)²)`.

use rayon::prelude::*;

use super::TASK;
use super::simd::vectorized;
use super::special::tanh;

/// Forward, in place.
pub(crate) fn forward(x: &mut [f32], cap: f32) {
    x.par_chunks_mut(TASK).for_each(|x| forward_values(x, cap));
}

/// Backward, in `d`'s place, from the forward pass's result.
pub(crate) fn backward(d: &mut [f32], y: &[f32], cap: f32) {
    d.par_chunks_mut(TASK).zip(y.par_chunks(TASK)).for_each(|(d, y)| backward_values(d, y, cap));
}

vectorized! {
    fn forward_values(x: &mut [f32], cap: f32) {
        for x in x {
            *x = cap * tanh(*x / cap);
        }
    }
}

vectorized! {
    fn backward_values(d: &mut [f32], y: &[f32], cap: f32) {
        for (d, y) in d.iter_mut().zip(y) {
            let t = y / cap;
            *d *= 1.0 - t * t;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{check_gradient, noise};

    #[test]
    fn gradient() {
        let x: Vec<f32> = noise(500, 1).iter().map(|x| 8.0 * x).collect();
        let dy = noise(500, 2);
        let capped = |x: &[f32]| {
            let mut y = x.to_vec();
            forward(&mut y, 3.0);
            y
        };
        let mut d = dy.clone();
        backward(&mut d, &capped(&x), 3.0);
        check_gradient("logits", &x, &d, |x| {
            capped(x).iter().zip(&dy).map(|(y, d)| f64::from(*y) * f64::from(*d)).sum()
        });
        assert!((capped(&[100.0])[0] - 3.0).abs() < 1e-6);
    }
}
