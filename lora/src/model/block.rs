//! One transformer layer, forward: `mid = x + o(attention(qkv(norm(x))))`, `out = mid + down(swiglu(norm(mid)))`.

use candle_core::Tensor;

use super::ModelError;
use super::cache::LayerCache;
use crate::linear::{Adapted, Factors, FrozenLinear, Kept, Output, Rows, forward};
use crate::ops::attention::{self, Heads, Span};
use crate::ops::rms_norm::Weight;
use crate::ops::rope::{RopeTable, Turn, rotate};
use crate::ops::{OpError, Scope, rms_norm, swiglu};

/// The linear layers of a block, in the order of its modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Slot {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The module's name within the layer.
    pub const fn module(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }
}

/// One transformer layer of the base.
#[derive(Debug)]
pub(crate) struct Block {
    /// Weight of the norm before attention.
    pub attention_norm: Vec<f32>,
    /// Weight of the norm before the MLP.
    pub mlp_norm: Vec<f32>,
    /// The linear layers, one per [`Slot`].
    pub linears: [FrozenLinear; 7],
}

/// The adapters of one block in one pass, one per [`Slot`].
pub(crate) type BlockFactors<'f, 'a> = &'f [Option<Factors<'a>>];

/// What all blocks of one pass share.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub spans: &'a [Span],
    pub positions: &'a [u32],
    pub rope: &'a RopeTable,
    pub heads: Heads,
    pub eps: f32,
    pub rows: &'a Rows,
    pub scope: Scope<'a>,
}

/// What a block's backward pass needs: everything else is made again.
pub(crate) struct Saved {
    /// The block's input.
    pub x: Tensor,
    pub attention_rstd: Tensor,
    /// After rotation.
    pub q: Tensor,
    /// After rotation.
    pub k: Tensor,
    pub v: Tensor,
    /// Attention's output and log-sum-exp.
    pub attended: Tensor,
    pub lse: Tensor,
    /// After attention's residual sum.
    pub mid: Tensor,
    pub mlp_rstd: Tensor,
    pub gate: Tensor,
    pub up: Tensor,
    /// What each slot's layer keeps.
    pub lows: [Kept; 7],
}

impl Saved {
    /// Gives every buffer back.
    pub fn recycle(self, scope: Scope) -> Result<(), OpError> {
        let Self { x, attention_rstd, q, k, v, attended, lse, mid, mlp_rstd, gate, up, lows } = self;
        for tensor in [x, attention_rstd, q, k, v, attended, lse, mid, mlp_rstd, gate, up] {
            scope.pool.recycle(tensor)?;
        }
        lows.into_iter().for_each(|low| low.recycle(scope));
        Ok(())
    }
}

impl Block {
    /// A slot's layer with its adapter.
    pub fn adapted<'f, 'a>(&'f self, factors: BlockFactors<'f, 'a>, slot: Slot) -> Adapted<'f, 'a> {
        (&self.linears[slot as usize], factors[slot as usize].as_ref())
    }

    /// `x` `[T, H]` → the block's output `[T, H]`, and what its backward pass needs.
    ///
    /// With a cache the tokens follow those that it holds, and are appended to it.
    pub fn forward(
        &self,
        x: Tensor,
        factors: BlockFactors,
        pass: Pass,
        cache: Option<&mut LayerCache>,
    ) -> Result<(Tensor, Saved), ModelError> {
        let scope = pass.scope;
        let at = |slot| self.adapted(factors, slot);
        let (h, attention_rstd) =
            rms_norm::forward(&x, Weight::plain(&self.attention_norm), pass.eps, None, scope)?;
        let [q, k, v] =
            outputs(forward(&h, &[at(Slot::Q), at(Slot::K), at(Slot::V)], None, pass.rows, scope)?);
        scope.pool.recycle(h)?;
        let turned = rotate(q.y, pass.positions, pass.rope, Turn::Forward)?;
        let (q, q_low) = (turned, q.kept);
        let turned = rotate(k.y, pass.positions, pass.rope, Turn::Forward)?;
        let (k, k_low) = (turned, k.kept);
        let (attended, lse) = match cache {
            None => attention::forward(&q, &k, &v.y, pass.spans, pass.heads, scope)?,
            Some(cache) => {
                let (k, v) = cache.append(&k, &v.y)?;
                attention::forward(&q, &k, &v, pass.spans, pass.heads, scope)?
            }
        };
        let [o] = outputs(forward(&attended, &[at(Slot::O)], Some(&x), pass.rows, scope)?);
        let mid = o.y;
        let (h, mlp_rstd) = rms_norm::forward(&mid, Weight::plain(&self.mlp_norm), pass.eps, None, scope)?;
        let [gate, up] = outputs(forward(&h, &[at(Slot::Gate), at(Slot::Up)], None, pass.rows, scope)?);
        scope.pool.recycle(h)?;
        let act = swiglu::forward(&gate.y, &up.y, scope)?;
        let [down] = outputs(forward(&act, &[at(Slot::Down)], Some(&mid), pass.rows, scope)?);
        scope.pool.recycle(act)?;
        let lows = [q_low, k_low, v.kept, o.kept, gate.kept, up.kept, down.kept];
        let (v, gate, up) = (v.y, gate.y, up.y);
        let saved = Saved { x, attention_rstd, q, k, v, attended, lse, mid, mlp_rstd, gate, up, lows };
        Ok((down.y, saved))
    }
}

/// The outputs of N layers as an array.
fn outputs<const N: usize>(outputs: Vec<Output>) -> [Output; N] {
    outputs.try_into().unwrap_or_else(|_| unreachable!("forward gives one output per layer"))
}
