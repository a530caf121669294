//! SwiGLU (arXiv:2002.05202): `act = silu(gate) · up`, recomputed in the backward pass instead of kept.

use candle_core::Tensor;
use rayon::prelude::*;

use super::simd::{sigmoid, vectorized};
use super::{OpError, Scope, TASK, into_vec, matrix, view};

const OP: &str = "swiglu";

/// Forward: `gate`, `up` `[T, M]` → `act` `[T, M]`.
pub(crate) fn forward(gate: &Tensor, up: &Tensor, scope: Scope) -> Result<Tensor, OpError> {
    let columns = gate.dim(1)?;
    let (gate, up) = (view(OP, gate)?, view(OP, up)?);
    let mut act = scope.pool.take(gate.len());
    act.par_chunks_mut(TASK)
        .zip(gate.par_chunks(TASK))
        .zip(up.par_chunks(TASK))
        .for_each(|((act, gate), up)| forward_values(gate, up, act));
    matrix(act, columns)
}

/// What [`backward`] returns, each in the place of an argument.
pub(crate) struct Backward {
    /// Gradient of `gate`, in `gate`'s place.
    pub dgate: Tensor,
    /// Gradient of `up`, in `up`'s place.
    pub dup: Tensor,
    /// The forward's result again, in `dact`'s place.
    pub act: Tensor,
}

/// Backward: from the saved `gate` and `up` and the gradient `dact` of the result.
pub(crate) fn backward(gate: Tensor, up: Tensor, dact: Tensor) -> Result<Backward, OpError> {
    let columns = gate.dim(1)?;
    let (mut gate, mut up, mut act) = (into_vec(OP, gate)?, into_vec(OP, up)?, into_vec(OP, dact)?);
    gate.par_chunks_mut(TASK)
        .zip(up.par_chunks_mut(TASK))
        .zip(act.par_chunks_mut(TASK))
        .for_each(|((gate, up), act)| backward_values(gate, up, act));
    Ok(Backward { dgate: matrix(gate, columns)?, dup: matrix(up, columns)?, act: matrix(act, columns)? })
}

vectorized! {
    fn forward_values(gate: &[f32], up: &[f32], act: &mut [f32]) {
        for ((act, &gate), &up) in act.iter_mut().zip(gate).zip(up) {
            *act = gate * sigmoid(gate) * up;
        }
    }
}

vectorized! {
    fn backward_values(gate: &mut [f32], up: &mut [f32], act: &mut [f32]) {
        for ((gate, up), act) in gate.iter_mut().zip(up).zip(act) {
            let (g, u, d) = (*gate, *up, *act);
            let s = sigmoid(g);
            let silu = g * s;
            *act = silu * u;
            *up = d * silu;
            *gate = d * u * (s + silu * (1.0 - s));
        }
    }
}
