//! DoRA's magnitude: the norms of the adapted weight's rows, the ratio that scales each column of a result, its gradient.

use std::ops::Range;

use rayon::prelude::*;

use super::FrozenLinear;
use super::factors::Low;
use crate::ops::{Scope, for_rows};

/// The magnitude `m` of one module in one pass.
#[derive(Debug)]
pub(super) struct Magnitude {
    /// `m / ‖W + s·B·A‖`, one for each column of the result.
    pub ratio: Vec<f32>,
    /// `1 / ‖W + s·B·A‖`.
    inverse: Vec<f32>,
    /// Place of its gradient.
    pub place: Range<usize>,
}

impl Magnitude {
    /// A row of norm zero stays zero, whatever its magnitude.
    pub fn new(values: &[f32], norms: Vec<f32>, place: Range<usize>) -> Self {
        let inverse: Vec<f32> = norms.iter().map(|&n| if n > 0.0 { 1.0 / n } else { 0.0 }).collect();
        let ratio = values.iter().zip(&norms).map(|(m, &n)| if n > 0.0 { m / n } else { 0.0 }).collect();
        Self { ratio, inverse, place }
    }

    /// `y = [y +] ratio ⊙ product`, rows as wide as the magnitude.
    pub fn scale(&self, product: &[f32], y: &mut [f32], add: bool) {
        let columns = self.ratio.len();
        for_rows(y, columns, |first, rows| {
            let products = product[first * columns..].chunks_exact(columns);
            for (y, product) in rows.chunks_exact_mut(columns).zip(products) {
                for ((y, p), ratio) in y.iter_mut().zip(product).zip(&self.ratio) {
                    *y = if add { *y + ratio * p } else { ratio * p };
                }
            }
        });
    }

    /// `out = ratio ⊙ dy`, the gradient of what the magnitude scales.
    pub fn unscale(&self, dy: &[f32], out: &mut [f32]) {
        self.scale(dy, out, false);
    }

    /// `dm = Σ dy ⊙ product / ‖W + s·B·A‖`; added to `out` or written there.
    pub fn gradient(&self, dy: &[f32], product: &[f32], out: &mut [f32], add: bool) {
        let columns = self.ratio.len();
        out.par_chunks_mut(STRIPE).enumerate().for_each(|(stripe, out)| {
            let at = stripe * STRIPE;
            let mut sums = [0f64; STRIPE];
            for (dy, product) in dy.chunks_exact(columns).zip(product.chunks_exact(columns)) {
                let pairs = dy[at..at + out.len()].iter().zip(&product[at..at + out.len()]);
                for (sum, (dy, product)) in sums.iter_mut().zip(pairs) {
                    *sum += f64::from(dy * product);
                }
            }
            for ((out, sum), inverse) in out.iter_mut().zip(sums).zip(&self.inverse[at..]) {
                let gradient = sum as f32 * inverse;
                *out = if add { *out + gradient } else { gradient };
            }
        });
    }
}

/// Columns that one task sums.
const STRIPE: usize = 64;

/// `‖W − s·B₀·A₀ + s·B·A‖` of each row, in f64.
pub(super) fn row_norms(layer: &FrozenLinear, low: &Low, scope: Scope) -> Vec<f32> {
    let (inputs, outputs) = (layer.in_features, layer.out_features);
    scope.flops.product(outputs, inputs, low.rank * if low.start.is_some() { 2 } else { 1 } + 1);
    let norm = |row: &mut Vec<f32>, j: usize| {
        layer.rows().read_row(j, row);
        low.add_delta_row(j, row);
        norm(row)
    };
    (0..outputs).into_par_iter().with_min_len(8).map_init(|| vec![0.0; inputs], norm).collect()
}

impl Low<'_> {
    /// Adds row j of `s·B·A − s·B₀·A₀`.
    pub fn add_delta_row(&self, j: usize, row: &mut [f32]) {
        let mut add = |a: &[f32], b: &[f32], scale: f32| {
            let b = &b[j * self.rank..][..self.rank];
            for (b, a) in b.iter().zip(a.chunks_exact(row.len())) {
                let factor = scale * b;
                row.iter_mut().zip(a).for_each(|(x, a)| *x += factor * a);
            }
        };
        add(self.a, self.b, self.scale);
        if let Some(start) = &self.start {
            add(start.a, start.b, -self.scale);
        }
    }
}

/// The Euclidean norm, in one order.
pub(crate) fn norm(x: &[f32]) -> f32 {
    let mut sums = [0f64; 8];
    for chunk in x.chunks(sums.len()) {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    sums.iter().sum::<f64>().sqrt() as f32
}
