//! Layer normalization (arXiv:1607.06450): `y = (x - mean) · rstd · w + b`, `rstd = 1/√(var(x) + ε)`, per row.

use candle_core::Tensor;
use rayon::prelude::*;

use super::norm_sums::{Sums, add_blocks};
use super::simd::{LANES, reduce, sum_lanes, vectorized};
use super::{OpError, Scope, for_rows, into_vec, matrix, task_rows, view};

const OP: &str = "layer_norm";

/// A norm's weight `[H]` and bias `[H]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Affine<'a> {
    pub weight: &'a [f32],
    pub bias: &'a [f32],
}

/// Where the gradients of weight and bias `[H]` are added.
#[derive(Debug, Default)]
pub(crate) struct AffineGradients<'a> {
    pub weight: Option<&'a mut [f32]>,
    pub bias: Option<&'a mut [f32]>,
}

/// Forward: `x` `[T, n·H]` → `y` `[T, n·H]` and each row's mean and rstd `[T·n, 2]`, which the backward pass needs.
///
/// With `residual` `[T, n·H]`, `y` is added to it.
pub(crate) fn forward(
    x: &Tensor,
    affine: Affine,
    eps: f32,
    residual: Option<&Tensor>,
    scope: Scope,
) -> Result<(Tensor, Tensor), OpError> {
    let columns = x.dim(1)?;
    let x = view(OP, x)?;
    let residual = residual.map(|r| view(OP, r)).transpose()?;
    let h = affine.weight.len();
    let mut y = scope.pool.take(x.len());
    let mut stats = scope.pool.take(2 * (x.len() / h));
    let rows = task_rows(h);
    y.par_chunks_mut(rows * h).zip(stats.par_chunks_mut(2 * rows)).enumerate().for_each(|(i, (y, stats))| {
        let at = i * rows * h..i * rows * h + y.len();
        statistics(&x[at.clone()], h, eps, stats);
        apply_rows(&x[at.clone()], affine, stats, y);
        if let Some(residual) = &residual {
            add(y, &residual[at]);
        }
    });
    Ok((matrix(y, columns)?, matrix(stats, 2)?))
}

/// The same `y` again from what was saved, so that it need not be kept.
pub(crate) fn again(x: &Tensor, affine: Affine, stats: &Tensor, scope: Scope) -> Result<Tensor, OpError> {
    let columns = x.dim(1)?;
    let (x, stats) = (view(OP, x)?, view(OP, stats)?);
    let h = affine.weight.len();
    let mut y = scope.pool.take(x.len());
    for_rows(&mut y, h, |first, y| apply_rows(&x[first * h..], affine, &stats[2 * first..], y));
    matrix(y, columns)
}

/// Backward: `∂y/∂xᵀ · dy`, **added to** `residual` in its place, if one is given.
///
/// With `g = dy·w` and `n = (x - mean)·rstd`: `dx = rstd · (g - mean(g) - n · mean(g·n))`. `Σ dy·n` and `Σ dy` are
/// **added** to the gradients of weight and bias, rows in blocks whose size depends on H only.
pub(crate) fn backward(
    x: &Tensor,
    affine: Affine,
    stats: &Tensor,
    dy: &Tensor,
    residual: Option<Tensor>,
    gradients: AffineGradients,
    scope: Scope,
) -> Result<Tensor, OpError> {
    let columns = x.dim(1)?;
    let (x, stats, dy) = (view(OP, x)?, view(OP, stats)?, view(OP, dy)?);
    let h = affine.weight.len();
    if let Some(dw) = gradients.weight {
        add_blocks(Sums { rows: stats.len() / 2, columns: h }, dw, scope, |rows, sums| {
            let values = rows.start * h..rows.end * h;
            weight_rows(&x[values.clone()], &stats[2 * rows.start..], &dy[values], sums);
        });
    }
    if let Some(db) = gradients.bias {
        super::norm_sums::add_rows(&dy, db, scope);
    }
    let add = residual.is_some();
    let mut d = match residual {
        Some(d) => into_vec(OP, d)?,
        None => scope.pool.take(x.len()),
    };
    for_rows(&mut d, h, |first, d| {
        if !add {
            d.fill(0.0);
        }
        backward_rows(&x[first * h..], affine.weight, &stats[2 * first..], &dy[first * h..], d);
    });
    matrix(d, columns)
}

vectorized! {
    /// Mean and rstd of each row.
    fn statistics(x: &[f32], h: usize, eps: f32, stats: &mut [f32]) {
        for (x, stats) in x.chunks_exact(h).zip(stats.chunks_exact_mut(2)) {
            let mean = reduce(x, |x| x) / h as f32;
            let variance = reduce(x, |x| (x - mean) * (x - mean)) / h as f32;
            stats.copy_from_slice(&[mean, 1.0 / (variance + eps).sqrt()]);
        }
    }
}

vectorized! {
    fn apply_rows(x: &[f32], affine: Affine<'_>, stats: &[f32], y: &mut [f32]) {
        let h = affine.weight.len();
        let rows = x.chunks_exact(h).zip(y.chunks_exact_mut(h)).zip(stats.chunks_exact(2));
        for ((x, y), stats) in rows {
            let (mean, rstd) = (stats[0], stats[1]);
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(affine.weight).zip(affine.bias) {
                *y = (x - mean) * rstd * w + b;
            }
        }
    }
}

vectorized! {
    fn add(y: &mut [f32], x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }
}

/// `Σ dy·w` and `Σ dy·w·n` of one row.
#[inline(always)]
fn row_sums(dy: &[f32], w: &[f32], x: &[f32], mean: f32, rstd: f32) -> (f32, f32) {
    let (mut plain, mut pull) = ([0f32; LANES], [0f32; LANES]);
    let ((xs, x_rest), (ds, d_rest)) = (x.as_chunks::<LANES>(), dy.as_chunks::<LANES>());
    let (ws, w_rest) = w.as_chunks::<LANES>();
    for ((x, d), w) in xs.iter().zip(ds).zip(ws) {
        for ((((plain, pull), x), d), w) in plain.iter_mut().zip(&mut pull).zip(x).zip(d).zip(w) {
            let g = d * w;
            *plain += g;
            *pull += g * ((x - mean) * rstd);
        }
    }
    for ((((plain, pull), x), d), w) in plain.iter_mut().zip(&mut pull).zip(x_rest).zip(d_rest).zip(w_rest) {
        let g = d * w;
        *plain += g;
        *pull += g * ((x - mean) * rstd);
    }
    (sum_lanes(plain), sum_lanes(pull))
}

vectorized! {
    fn backward_rows(x: &[f32], w: &[f32], stats: &[f32], dy: &[f32], d: &mut [f32]) {
        let h = w.len();
        let rows = x.chunks_exact(h).zip(dy.chunks_exact(h)).zip(d.chunks_exact_mut(h));
        for (((x, dy), d), stats) in rows.zip(stats.chunks_exact(2)) {
            let (mean, rstd) = (stats[0], stats[1]);
            let (plain, pull) = row_sums(dy, w, x, mean, rstd);
            let (plain, pull) = (plain / h as f32, pull / h as f32);
            for (((d, x), dy), w) in d.iter_mut().zip(x).zip(dy).zip(w) {
                *d += rstd * (dy * w - plain - (x - mean) * rstd * pull);
            }
        }
    }
}

vectorized! {
    /// Adds `dy·n` of each row to `sums`.
    fn weight_rows(x: &[f32], stats: &[f32], dy: &[f32], sums: &mut [f32]) {
        let h = sums.len();
        for ((x, dy), stats) in x.chunks_exact(h).zip(dy.chunks_exact(h)).zip(stats.chunks_exact(2)) {
            for ((sum, x), dy) in sums.iter_mut().zip(x).zip(dy) {
                *sum += dy * ((x - stats[0]) * stats[1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{check_gradient, close, noise, same_on_threads, scoped, values, weigh};

    const EPS: f32 = 1e-5;

    fn plain(x: &[f32], w: &[f32], b: &[f32]) -> Vec<f32> {
        let h = w.len();
        let row = |x: &[f32]| -> Vec<f32> {
            let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / h as f64;
            let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / h as f64;
            let normed = |x: f32| (f64::from(x) - mean) / (variance + f64::from(EPS)).sqrt();
            let affine = x.iter().zip(w).zip(b);
            affine.map(|((x, w), b)| (normed(*x) * f64::from(*w) + f64::from(*b)) as f32).collect()
        };
        x.chunks_exact(h).flat_map(row).collect()
    }

    #[test]
    fn gradients() {
        let (t, h) = (260, 70);
        let x: Vec<f32> = noise(t * h, 1).iter().map(|x| x + 2.0).collect();
        let (w, b, dy, residual) = (noise(h, 2), noise(h, 3), noise(t * h, 4), noise(t * h, 5));
        let tensor = |x: &[f32]| matrix(x.to_vec(), h).unwrap();
        let affine = Affine { weight: &w, bias: &b };
        let run = |d: Option<Tensor>, gradients: AffineGradients| {
            scoped(|scope| {
                let x = tensor(&x);
                let (y, stats) = forward(&x, affine, EPS, None, scope).unwrap();
                assert_eq!(values(&y), values(&again(&x, affine, &stats, scope).unwrap()));
                let (sum, _) = forward(&x, affine, EPS, Some(&tensor(&residual)), scope).unwrap();
                let want: Vec<f32> = values(&y).iter().zip(&residual).map(|(y, r)| y + r).collect();
                assert_eq!(values(&sum), want);
                let dx = backward(&x, affine, &stats, &tensor(&dy), d, gradients, scope).unwrap();
                (values(&y), values(&dx))
            })
        };
        let all = same_on_threads(|| {
            let (mut dw, mut db) = (vec![0.0; h], vec![0.0; h]);
            let gradients = AffineGradients { weight: Some(&mut dw), bias: Some(&mut db) };
            let (y, dx) = run(Some(tensor(&residual)), gradients);
            close(&y, &plain(&x, &w, &b), 1e-5);
            [dx, dw, db].concat()
        });
        let (dx, rest) = all.split_at(t * h);
        let (dw, db) = rest.split_at(h);
        check_gradient("x", &x, dx, |x| weigh(&plain(x, &w, &b), &dy) + weigh(x, &residual));
        check_gradient("w", &w, dw, |w| weigh(&plain(&x, w, &b), &dy));
        check_gradient("b", &b, db, |b| weigh(&plain(&x, &w, b), &dy));
        let without = run(None, AffineGradients::default()).1;
        close(&without, &dx.iter().zip(&residual).map(|(d, r)| d - r).collect::<Vec<_>>(), 1e-5);
    }
}
