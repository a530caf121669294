//! Sums of two matrices, in the first one's place.

use candle_core::Tensor;
use rayon::prelude::*;

use super::simd::vectorized;
use super::{OpError, TASK, into_vec, matrix, view};

const OP: &str = "add";

/// `x + y`, of the same shape, in `x`'s place.
pub(crate) fn add_to(x: Tensor, y: &Tensor) -> Result<Tensor, OpError> {
    let columns = x.dim(1)?;
    let mut x = into_vec(OP, x)?;
    let y = view(OP, y)?;
    x.par_chunks_mut(TASK).zip(y.par_chunks(TASK)).for_each(|(x, y)| add(x, y));
    matrix(x, columns)
}

vectorized! {
    /// Adds `y` to `x`.
    pub(crate) fn add(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

vectorized! {
    /// Adds `scale · y` to `x`.
    pub(crate) fn add_scaled(x: &mut [f32], y: &[f32], scale: f32) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += scale * y;
        }
    }
}
