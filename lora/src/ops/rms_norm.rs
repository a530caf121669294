//! Root-mean-square normalization (arXiv:1910.07467): `y = x · rstd · (w + o)`, `rstd = 1/√(mean(x²) + ε)`, per row.
//!
//! The offset `o` is 0, or 1 where weights are kept as the difference from 1 (Gemma). A row is as long as the weight:
//! a tensor whose columns are several times that is normed piece by piece (queries and keys, head by head).

use candle_core::Tensor;
use rayon::prelude::*;

use super::norm_sums::{Sums, add_blocks};
use super::simd::{LANES, sum_lanes, vectorized};
use super::{OpError, Scope, for_rows, into_vec, matrix, task_rows, view};

const OP: &str = "rms_norm";

/// A norm's weight `[H]` and what is added to each of its values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weight<'a> {
    pub values: &'a [f32],
    pub offset: f32,
}

impl<'a> Weight<'a> {
    /// A weight that is used as it is.
    pub fn plain(values: &'a [f32]) -> Self {
        Self { values, offset: 0.0 }
    }

    /// A weight that is kept as the difference from 1.
    pub fn plus_one(values: &'a [f32]) -> Self {
        Self { values, offset: 1.0 }
    }
}

/// Forward: `x` `[T, n·H]` → `y` `[T, n·H]` and `rstd` `[T·n, 1]`, which the backward pass needs.
///
/// With `residual` `[T, n·H]`, `y` is added to it.
pub(crate) fn forward(
    x: &Tensor,
    w: Weight,
    eps: f32,
    residual: Option<&Tensor>,
    scope: Scope,
) -> Result<(Tensor, Tensor), OpError> {
    let columns = x.dim(1)?;
    let x = view(OP, x)?;
    let residual = residual.map(|r| view(OP, r)).transpose()?;
    let h = w.values.len();
    let mut y = scope.pool.take(x.len());
    let mut rstd = scope.pool.take(x.len() / h);
    let rows = task_rows(h);
    y.par_chunks_mut(rows * h).zip(rstd.par_chunks_mut(rows)).enumerate().for_each(|(i, (y, rstd))| {
        let at = i * rows * h..i * rows * h + y.len();
        match &residual {
            Some(r) => forward_add_rows(&x[at.clone()], w, eps, &r[at], y, rstd),
            None => forward_rows(&x[at], w, eps, y, rstd),
        }
    });
    Ok((matrix(y, columns)?, matrix(rstd, 1)?))
}

/// The same `y` again from what was saved, so that it need not be kept.
pub(crate) fn again(x: &Tensor, w: Weight, rstd: &Tensor, scope: Scope) -> Result<Tensor, OpError> {
    let columns = x.dim(1)?;
    let (x, rstd) = (view(OP, x)?, view(OP, rstd)?);
    let h = w.values.len();
    let mut y = scope.pool.take(x.len());
    for_rows(&mut y, h, |first, y| again_rows(&x[first * h..], w, &rstd[first..], y));
    matrix(y, columns)
}

/// Backward: `∂y/∂xᵀ · dy`, **added to** `residual` in its place, if one is given.
///
/// With `g = dy·(w + o)`: `dx = rstd · (g - x · rstd² · mean(g·x))`. To `dw` `[H]`, if given, `Σ dy·x·rstd` is **added**,
/// rows in blocks whose size depends on H only.
pub(crate) fn backward(
    x: &Tensor,
    w: Weight,
    rstd: &Tensor,
    dy: &Tensor,
    residual: Option<Tensor>,
    dw: Option<&mut [f32]>,
    scope: Scope,
) -> Result<Tensor, OpError> {
    let columns = x.dim(1)?;
    let (x, rstd, dy) = (view(OP, x)?, view(OP, rstd)?, view(OP, dy)?);
    let h = w.values.len();
    if let Some(dw) = dw {
        let sum = |rows: std::ops::Range<usize>, sums: &mut [f32]| {
            let values = rows.start * h..rows.end * h;
            weight_rows(&x[values.clone()], &rstd[rows], &dy[values], sums);
        };
        add_blocks(Sums { rows: rstd.len(), columns: h }, dw, scope, sum);
    }
    let add = residual.is_some();
    let mut d = match residual {
        Some(d) => into_vec(OP, d)?,
        None => scope.pool.take(x.len()),
    };
    for_rows(&mut d, h, |first, d| {
        let rows = (&x[first * h..], &rstd[first..], &dy[first * h..]);
        if add {
            backward_add_rows(rows.0, w, rows.1, rows.2, d);
        } else {
            backward_rows(rows.0, w, rows.1, rows.2, d);
        }
    });
    matrix(d, columns)
}

/// `rstd` of one row.
#[inline(always)]
fn row_rstd(x: &[f32], eps: f32) -> f32 {
    let mean = super::simd::dot(x, x) / x.len() as f32;
    1.0 / (mean + eps).sqrt()
}

/// `Σ dy·(w + o)·x` of one row.
#[inline(always)]
fn row_pull(dy: &[f32], w: Weight, x: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((xs, x_rest), (ds, d_rest)) = (x.as_chunks::<LANES>(), dy.as_chunks::<LANES>());
    let (ws, w_rest) = w.values.as_chunks::<LANES>();
    for ((x, d), w_) in xs.iter().zip(ds).zip(ws) {
        for (((sum, x), d), w_) in lanes.iter_mut().zip(x).zip(d).zip(w_) {
            *sum += d * (w_ + w.offset) * x;
        }
    }
    for (((sum, x), d), w_) in lanes.iter_mut().zip(x_rest).zip(d_rest).zip(w_rest) {
        *sum += d * (w_ + w.offset) * x;
    }
    sum_lanes(lanes)
}

vectorized! {
    fn forward_rows(x: &[f32], w: Weight<'_>, eps: f32, y: &mut [f32], rstd: &mut [f32]) {
        let h = w.values.len();
        for ((x, y), rstd) in x.chunks_exact(h).zip(y.chunks_exact_mut(h)).zip(rstd) {
            *rstd = row_rstd(x, eps);
            for ((y, x), w_) in y.iter_mut().zip(x).zip(w.values) {
                *y = x * *rstd * (w_ + w.offset);
            }
        }
    }
}

vectorized! {
    fn forward_add_rows(x: &[f32], w: Weight<'_>, eps: f32, r: &[f32], y: &mut [f32], rstd: &mut [f32]) {
        let h = w.values.len();
        let rows = x.chunks_exact(h).zip(r.chunks_exact(h)).zip(y.chunks_exact_mut(h)).zip(rstd);
        for (((x, r), y), rstd) in rows {
            *rstd = row_rstd(x, eps);
            for (((y, x), r), w_) in y.iter_mut().zip(x).zip(r).zip(w.values) {
                *y = r + x * *rstd * (w_ + w.offset);
            }
        }
    }
}

vectorized! {
    fn again_rows(x: &[f32], w: Weight<'_>, rstd: &[f32], y: &mut [f32]) {
        let h = w.values.len();
        for ((x, y), rstd) in x.chunks_exact(h).zip(y.chunks_exact_mut(h)).zip(rstd) {
            for ((y, x), w_) in y.iter_mut().zip(x).zip(w.values) {
                *y = x * rstd * (w_ + w.offset);
            }
        }
    }
}

vectorized! {
    fn backward_rows(x: &[f32], w: Weight<'_>, rstd: &[f32], dy: &[f32], d: &mut [f32]) {
        let h = w.values.len();
        let rows = x.chunks_exact(h).zip(dy.chunks_exact(h)).zip(d.chunks_exact_mut(h)).zip(rstd);
        for (((x, dy), d), &rstd) in rows {
            let pull = rstd * rstd * (row_pull(dy, w, x) / h as f32);
            for (((d, x), dy), w_) in d.iter_mut().zip(x).zip(dy).zip(w.values) {
                *d = rstd * (dy * (w_ + w.offset) - x * pull);
            }
        }
    }
}

vectorized! {
    fn backward_add_rows(x: &[f32], w: Weight<'_>, rstd: &[f32], dy: &[f32], d: &mut [f32]) {
        let h = w.values.len();
        let rows = x.chunks_exact(h).zip(dy.chunks_exact(h)).zip(d.chunks_exact_mut(h)).zip(rstd);
        for (((x, dy), d), &rstd) in rows {
            let pull = rstd * rstd * (row_pull(dy, w, x) / h as f32);
            for (((d, x), dy), w_) in d.iter_mut().zip(x).zip(dy).zip(w.values) {
                *d += rstd * (dy * (w_ + w.offset) - x * pull);
            }
        }
    }
}

vectorized! {
    /// Adds `dy·x·rstd` of each row to `sums`.
    fn weight_rows(x: &[f32], rstd: &[f32], dy: &[f32], sums: &mut [f32]) {
        let h = sums.len();
        for ((x, dy), rstd) in x.chunks_exact(h).zip(dy.chunks_exact(h)).zip(rstd) {
            for ((sum, x), dy) in sums.iter_mut().zip(x).zip(dy) {
                *sum += dy * (x * rstd);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{check_gradient, noise, same_on_threads, scoped, values, weigh};

    /// Gradients of x and w for every variant: offsets, rows that are parts of a token, with and without a residual.
    #[test]
    fn gradients() {
        for (t, pieces, h, offset) in
            [(300, 1, 70, 0.0), (90, 1, 33, 1.0), (40, 6, 16, 0.0), (50, 3, 20, 1.0)]
        {
            let columns = pieces * h;
            let (x, w) = (noise(t * columns, 8), noise(h, 9));
            let (dy, residual) = (noise(t * columns, 10), noise(t * columns, 11));
            let tensor = |x: &[f32]| matrix(x.to_vec(), columns).unwrap();
            let forward = |x: &[f32], w: &[f32]| {
                scoped(|scope| {
                    let x = tensor(x);
                    let (y, rstd) = forward(&x, Weight { values: w, offset }, 1e-5, None, scope).unwrap();
                    assert_eq!(
                        values(&y),
                        values(&again(&x, Weight { values: w, offset }, &rstd, scope).unwrap())
                    );
                    let (sum, _) = super::forward(
                        &x,
                        Weight { values: w, offset },
                        1e-5,
                        Some(&tensor(&residual)),
                        scope,
                    )
                    .unwrap();
                    for ((sum, y), r) in values(&sum).iter().zip(values(&y)).zip(&residual) {
                        assert_eq!(*sum, r + y);
                    }
                    (values(&y), rstd)
                })
            };
            same_on_threads(|| forward(&x, &w).0);
            let run = |d: Option<Tensor>, dw: Option<&mut [f32]>| {
                let rstd = forward(&x, &w).1;
                scoped(|s| {
                    values(
                        &backward(&tensor(&x), Weight { values: &w, offset }, &rstd, &tensor(&dy), d, dw, s)
                            .unwrap(),
                    )
                })
            };
            let both = same_on_threads(|| {
                let mut dw = vec![0.0; h];
                let dx = run(Some(tensor(&residual)), Some(&mut dw));
                [dx, dw].concat()
            });
            let (dx, dw) = both.split_at(t * columns);
            check_gradient("x", &x, dx, |x| weigh(&forward(x, &w).0, &dy) + weigh(x, &residual));
            check_gradient("w", &w, dw, |w| weigh(&forward(&x, w).0, &dy));
            let zero = tensor(&vec![0.0; t * columns]);
            assert_eq!(run(None, None), run(Some(zero), None), "a residual of zero");
        }
    }
}
