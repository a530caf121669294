//! Root-mean-square normalization (arXiv:1910.07467): `y = x · rstd · w`, `rstd = 1/√(mean(x²) + ε)`, per row.

use candle_core::Tensor;

use super::simd::{dot, dot3, vectorized};
use super::{OpError, Scope, for_rows, into_vec, matrix, task_rows, view};
use rayon::prelude::*;

const OP: &str = "rms_norm";

/// Forward: `x` `[T, H]`, `w` of length H → `y` `[T, H]` and `rstd` `[T, 1]`, which the backward pass needs.
pub(crate) fn forward(x: &Tensor, w: &[f32], eps: f32, scope: Scope) -> Result<(Tensor, Tensor), OpError> {
    let x = view(OP, x)?;
    let h = w.len();
    let mut y = scope.pool.take(x.len());
    let mut rstd = scope.pool.take(x.len() / h);
    let rows = task_rows(h);
    y.par_chunks_mut(rows * h)
        .zip(rstd.par_chunks_mut(rows))
        .zip(x.par_chunks(rows * h))
        .for_each(|((y, rstd), x)| forward_rows(x, w, eps, y, rstd));
    Ok((matrix(y, h)?, matrix(rstd, 1)?))
}

/// The same `y` again from what was saved, so that it need not be kept.
pub(crate) fn again(x: &Tensor, w: &[f32], rstd: &Tensor, scope: Scope) -> Result<Tensor, OpError> {
    let (x, rstd) = (view(OP, x)?, view(OP, rstd)?);
    let h = w.len();
    let mut y = scope.pool.take(x.len());
    for_rows(&mut y, h, |first, y| again_rows(&x[first * h..], w, &rstd[first..], y));
    matrix(y, h)
}

/// Backward, with the residual's gradient: `d + ∂y/∂xᵀ · dy`, in `d`'s place.
///
/// With `g = dy·w`: `dx = rstd · (g - x · rstd² · mean(g·x))`.
pub(crate) fn backward(
    x: &Tensor,
    w: &[f32],
    rstd: &Tensor,
    dy: &Tensor,
    d: Tensor,
) -> Result<Tensor, OpError> {
    let mut d = into_vec(OP, d)?;
    let (x, rstd, dy) = (view(OP, x)?, view(OP, rstd)?, view(OP, dy)?);
    let h = w.len();
    for_rows(&mut d, h, |first, d| {
        backward_rows(&x[first * h..], w, &rstd[first..], &dy[first * h..], d);
    });
    matrix(d, h)
}

vectorized! {
    fn forward_rows(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
        let h = w.len();
        for ((x, y), rstd) in x.chunks_exact(h).zip(y.chunks_exact_mut(h)).zip(rstd) {
            let mean = dot(x, x) / h as f32;
            *rstd = 1.0 / (mean + eps).sqrt();
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = x * *rstd * w;
            }
        }
    }
}

vectorized! {
    fn again_rows(x: &[f32], w: &[f32], rstd: &[f32], y: &mut [f32]) {
        let h = w.len();
        for ((x, y), rstd) in x.chunks_exact(h).zip(y.chunks_exact_mut(h)).zip(rstd) {
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = x * rstd * w;
            }
        }
    }
}

vectorized! {
    fn backward_rows(x: &[f32], w: &[f32], rstd: &[f32], dy: &[f32], d: &mut [f32]) {
        let h = w.len();
        let rows = x.chunks_exact(h).zip(dy.chunks_exact(h)).zip(d.chunks_exact_mut(h)).zip(rstd);
        for (((x, dy), d), &rstd) in rows {
            let mean = dot3(dy, w, x) / h as f32;
            let pull = rstd * rstd * mean;
            for (((d, x), dy), w) in d.iter_mut().zip(x).zip(dy).zip(w) {
                *d += rstd * (dy * w - x * pull);
            }
        }
    }
}
