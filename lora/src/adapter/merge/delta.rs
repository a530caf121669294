//! What an adapter adds to one weight, some rows at a time.

use rayon::prelude::*;

use crate::adapter::Adapter;
use crate::ops::product::{Left, Right, serial};
use crate::params::LoraWeights;

/// The change of one weight: `W + s·B·A − s·B₀·A₀`, then DoRA's magnitude.
pub(super) struct Delta<'a> {
    weights: LoraWeights<'a>,
    /// Whether the weight is stored `[in, out]`: gpt2's layers, embeddings.
    transposed: bool,
    /// `Bᵀ` and `B₀ᵀ`, where it is.
    b: Vec<f32>,
    b0: Vec<f32>,
}

/// Rows that one task computes.
const ROWS: usize = 32;

impl<'a> Delta<'a> {
    /// The change of a module's weight, if it has an adapter.
    pub fn of(adapter: &'a Adapter, module: &str, transposed: bool) -> Option<Self> {
        let weights = adapter.view().get(module)?;
        let rank = weights.module.rank;
        let transpose = |b: &[f32]| {
            let rows = b.len() / rank;
            (0..b.len()).map(|at| b[at % rows * rank + at / rows]).collect()
        };
        let b = if transposed { transpose(weights.b) } else { Vec::new() };
        let b0 = weights.start.filter(|_| transposed).map_or(Vec::new(), |(_, b0)| transpose(b0));
        Some(Self { weights, transposed, b, b0 })
    }

    /// Whether norms run over stored rows, so that they must be known before the first is written.
    pub fn needs_norms(&self) -> bool {
        self.transposed && self.weights.magnitude.is_some()
    }

    /// Columns of the stored weight.
    pub fn columns(&self) -> usize {
        let module = self.weights.module;
        if self.transposed { module.out_features } else { module.in_features }
    }

    /// Adds the low-rank product to rows of the stored weight, the first of which is row `first`.
    fn add(&self, first: usize, rows: &mut [f32]) {
        let (module, columns) = (self.weights.module, self.columns());
        let rank = module.rank;
        rows.par_chunks_mut(ROWS * columns).enumerate().for_each(|(i, rows)| {
            let (row, n) = (first + i * ROWS, rows.len() / columns);
            let mut add = |a: &[f32], b: &[f32], b_transposed: &[f32], scale: f32| {
                let (left, right) = if self.transposed {
                    (Left::transposed(&a[row..], module.in_features), b_transposed)
                } else {
                    (Left::rows(&b[row * rank..], rank), a)
                };
                let right = Right::Rows { data: right, stride: columns };
                serial(rows, columns, (n, columns, rank), left, right, scale, true);
            };
            add(self.weights.a, self.weights.b, &self.b, module.scale);
            if let Some((a0, b0)) = self.weights.start {
                add(a0, b0, &self.b0, -module.scale);
            }
        });
    }

    /// Adds the squares of some rows of the changed weight to the sums of their columns; the rows are used up.
    pub fn add_squares(&self, first: usize, rows: &mut [f32], sums: &mut [f64]) {
        self.add(first, rows);
        for row in rows.chunks_exact(self.columns()) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
        }
    }

    /// Changes rows of the stored weight. `sums` are the squares of the columns, where [`Delta::needs_norms`].
    pub fn apply(&self, first: usize, rows: &mut [f32], sums: &[f64]) {
        self.add(first, rows);
        let Some(magnitude) = self.weights.magnitude else { return };
        // As in training: a row of norm zero stays zero.
        let ratio = |m: f32, norm: f32| if norm > 0.0 { m / norm } else { 0.0 };
        if self.transposed {
            let ratios: Vec<f32> =
                magnitude.iter().zip(sums).map(|(m, sum)| ratio(*m, sum.sqrt() as f32)).collect();
            for row in rows.chunks_exact_mut(self.columns()) {
                row.iter_mut().zip(&ratios).for_each(|(x, ratio)| *x *= ratio);
            }
        } else {
            for (row, m) in rows.chunks_exact_mut(self.columns()).zip(&magnitude[first..]) {
                let ratio = ratio(*m, crate::linear::norm(row));
                row.iter_mut().for_each(|x| *x *= ratio);
            }
        }
    }
}
