//! Fused operations with hand-written backward passes: free functions on candle tensors.
//!
//! # Legend of the shapes
//! | letter | what it counts |
//! | --- | --- |
//! | T | tokens of the packed batch; T' keys, where a cache holds earlier ones |
//! | H | width of the residual stream, or of what a norm norms |
//! | N, K, D | query heads, key/value heads, values of a head |
//! | M | width of the MLP |
//! | V, L | vocabulary (or classes), labelled tokens (or sequences) |
//! | R | rank of an adapter |
//!
//! # Operations
//! | operation | forward | the backward pass needs |
//! | --- | --- | --- |
//! | [`norm`]: [`rms_norm`], `1 + w`, [`layer_norm`]; with the residual sum | `[T, n·H]` → `[T, n·H]` | input, statistics of each row |
//! | [`rope`]: every scaling of transformers | `[T, N·D]`, in place | nothing |
//! | [`attention`]: causal or not, sliding window, softcap | q, k, v → `[T, N·D]` | q, k, v, result, two numbers for each row and head |
//! | [`activation`]: gated, plain, from one matrix; tanh | `[T, M]` twice → `[T, M]` | its arguments, whose places the gradients take |
//! | [`cross_entropy`]: of tokens or classes, with a softcap | `[L, V]` → loss | nothing: the gradient takes the logits' place |
//! | [`embedding`], its gradient by [`scatter`] | tokens → `[T, H]` | tokens |
//! | [`product`]: matrix products | | |
//!
//! # Rules
//! - Every operation has a CPU body, rows split between threads; a tensor on another device is an error that names the
//!   operation.
//! - Nothing is summed in an order that depends on the number of threads. What is summed over tokens (gradients of norms,
//!   biases, keys and values) is summed in parts that follow from the shapes alone, and the parts in one order.
//! - What can be made again from what is kept anyway (norms, activations, probabilities) is not kept, and comes out with
//!   the same bits.
//! - exp, tanh and erf are polynomials of IEEE operations ([`simd`], [`special`]): the same bits with every instruction set.
//!   Products are not (fused multiply-add or none): the instruction set is part of a worker's kind.
//! - Gradients of parameters are **added** to the place that they are given, unless an operation says otherwise.

pub(crate) mod activation;
pub(crate) mod add;
pub(crate) mod aligned;
pub(crate) mod attention;
pub(crate) mod bf16;
pub(crate) mod cross_entropy;
pub(crate) mod embedding;
pub(crate) mod kernel;
pub(crate) mod layer_norm;
pub(crate) mod norm;
pub(crate) mod norm_sums;
pub(crate) mod pool;
pub(crate) mod product;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod scatter;
pub(crate) mod simd;
pub(crate) mod special;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod transpose;
pub(crate) mod weights;

use std::cell::RefCell;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Storage, StorageRef, Tensor};
use rayon::prelude::*;

use crate::flops::FlopCounter;
use pool::Pool;

/// Why an operation could not run.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// The tensor is on a device, or of a type, for which the operation has no body.
    #[error("{op}: no kernel for {found}; only f32 tensors on the CPU are supported")]
    Unsupported {
        /// The operation.
        op: &'static str,
        /// Device and type of the tensor.
        found: String,
    },
    /// The tensor is not a whole row-major matrix.
    #[error("{op}: the tensor is not contiguous")]
    NotContiguous {
        /// The operation.
        op: &'static str,
    },
    /// candle's own error.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// What every operation of one pass shares: recycled buffers and the count of operations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope<'a> {
    pub pool: &'a Pool,
    pub flops: &'a FlopCounter,
}

/// The values of a CPU tensor, to read.
pub(crate) struct View<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl Deref for View<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            _ => unreachable!("checked when the view was made"),
        }
    }
}

/// Borrows a contiguous f32 CPU tensor.
pub(crate) fn view<'a>(op: &'static str, tensor: &'a Tensor) -> Result<View<'a>, OpError> {
    let (storage, layout) = tensor.storage_and_layout();
    if !matches!(&*storage, Storage::Cpu(CpuStorage::F32(_))) {
        let found = format!("{:?} on {:?}", tensor.dtype(), tensor.device().location());
        return Err(OpError::Unsupported { op, found });
    }
    let (start, end) = layout.contiguous_offsets().ok_or(OpError::NotContiguous { op })?;
    Ok(View { storage, range: start..end })
}

struct Take(RefCell<Vec<f32>>);

impl InplaceOp1 for Take {
    fn name(&self) -> &'static str {
        "take"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        match storage {
            CpuStorage::F32(values) => *self.0.borrow_mut() = std::mem::take(values),
            other => candle_core::bail!(
                "take: {:?} is not f32",
                candle_core::backend::BackendStorage::dtype(other)
            ),
        }
        Ok(())
    }
}

/// Takes the values out of a tensor that nobody else holds, to change them in place or to recycle them.
pub(crate) fn into_vec(op: &'static str, tensor: Tensor) -> Result<Vec<f32>, OpError> {
    let len = view(op, &tensor)?.len();
    let take = Take(RefCell::default());
    tensor.inplace_op1(&take)?;
    let values = take.0.into_inner();
    if values.len() == len { Ok(values) } else { Err(OpError::NotContiguous { op }) }
}

/// Makes a `[rows, columns]` CPU tensor of values, without a copy.
pub(crate) fn matrix(values: Vec<f32>, columns: usize) -> Result<Tensor, OpError> {
    let rows = values.len() / columns.max(1);
    Ok(Tensor::from_vec(values, (rows, columns), &Device::Cpu)?)
}

/// Values that one task of an element-wise pass handles: enough to pay for handing it to a thread.
const TASK: usize = 16 * 1024;

/// Rows of one task of an element-wise pass over rows of that width.
pub(crate) fn task_rows(columns: usize) -> usize {
    (TASK / columns.max(1)).max(1)
}

/// Calls `f(first row, chunk)` for chunks of whole rows, on all threads.
pub(crate) fn for_rows(values: &mut [f32], columns: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = task_rows(columns);
    if values.len() <= rows * columns {
        return f(0, values);
    }
    values.par_chunks_mut(rows * columns).enumerate().for_each(|(i, chunk)| f(i * rows, chunk));
}
