//! One transformer layer, backward, down to the lowest adapted layer and no further.

use candle_core::Tensor;

use super::ModelError;
use super::block::{Block, BlockFactors, Pass, Saved, Slot};
use crate::linear::{Into, Kept, Upstream, backward_input, backward_weights};
use crate::ops::attention_backward::{self, Gradients};
use crate::ops::rms_norm::Weight;
use crate::ops::rope::{Turn, rotate};
use crate::ops::{rms_norm, swiglu};

/// Where the backward pass of a block ends: nothing below needs a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Until {
    /// At the MLP's last layer.
    Down,
    /// At the MLP's first layers.
    GateUp,
    /// At attention's last layer.
    Output,
    /// At attention's first layers.
    Qkv,
    /// Through the whole block: blocks below need its input's gradient.
    Input,
}

impl Until {
    /// The lowest adapted layer of a block, if it has one.
    pub fn lowest(factors: BlockFactors) -> Option<Self> {
        let has = |slots: &[Slot]| slots.iter().any(|&slot| factors[slot as usize].is_some());
        if has(&[Slot::Q, Slot::K, Slot::V]) {
            Some(Self::Qkv)
        } else if has(&[Slot::O]) {
            Some(Self::Output)
        } else if has(&[Slot::Gate, Slot::Up]) {
            Some(Self::GateUp)
        } else if has(&[Slot::Down]) {
            Some(Self::Down)
        } else {
            None
        }
    }
}

impl Block {
    /// From the gradient `d` `[T, H]` of the block's output: its adapters' gradients, written to their places, and the
    /// gradient of its input, if the pass goes that far.
    pub fn backward(
        &self,
        saved: Saved,
        d: Tensor,
        factors: BlockFactors,
        until: Until,
        gradients: &mut [f32],
        pass: Pass,
    ) -> Result<Option<Tensor>, ModelError> {
        let scope = pass.scope;
        let Saved { x, attention_rstd, q, k, v, attended, lse, mid, mlp_rstd, gate, up, lows } = saved;
        let mlp = Mlp { mid, rstd: mlp_rstd, gate, up };
        let d = self.mlp_backward(mlp, d, &lows, factors, until, gradients, pass)?;
        let d = if until > Until::GateUp {
            let at =
                Attention { x: &x, rstd: &attention_rstd, q: &q, k: &k, v: &v, out: &attended, lse: &lse };
            self.attention_backward(at, d, &lows, factors, until, gradients, pass)?
        } else {
            d
        };
        for tensor in [x, attention_rstd, q, k, v, attended, lse] {
            scope.pool.recycle(tensor)?;
        }
        lows.into_iter().for_each(|low| low.recycle(scope));
        if until == Until::Input {
            return Ok(Some(d));
        }
        scope.pool.recycle(d)?;
        Ok(None)
    }

    /// One layer on the way back.
    fn upstream<'l, 'a>(
        &'l self,
        factors: BlockFactors<'l, 'a>,
        slot: Slot,
        dy: &'l Tensor,
        lows: &'l [Kept; 7],
    ) -> Upstream<'l, 'a> {
        Upstream { layer: self.adapted(factors, slot), dy, kept: &lows[slot as usize] }
    }

    /// The MLP: `d` becomes the gradient of `mid`, if the pass goes that far.
    #[allow(clippy::too_many_arguments)]
    fn mlp_backward(
        &self,
        saved: Mlp,
        d: Tensor,
        lows: &[Kept; 7],
        factors: BlockFactors,
        until: Until,
        gradients: &mut [f32],
        pass: Pass,
    ) -> Result<Tensor, ModelError> {
        let scope = pass.scope;
        let Mlp { mid, rstd, gate, up } = saved;
        let down = [self.upstream(factors, Slot::Down, &d, lows)];
        let (dact, reduced) = backward_input(&down, until > Until::Down, pass.rows, scope)?;
        let Some(dact) = dact else {
            let act = swiglu::forward(&gate, &up, scope)?;
            backward_weights(&down, reduced, &act, gradients, Into::Overwrite, pass.rows, scope)?;
            for tensor in [mid, rstd, gate, up, act] {
                scope.pool.recycle(tensor)?;
            }
            return Ok(d);
        };
        let swiglu::Backward { dgate, dup, act } = swiglu::backward(gate, up, dact)?;
        backward_weights(&down, reduced, &act, gradients, Into::Overwrite, pass.rows, scope)?;
        scope.pool.recycle(act)?;
        let layers =
            [self.upstream(factors, Slot::Gate, &dgate, lows), self.upstream(factors, Slot::Up, &dup, lows)];
        let (dh, reduced) = backward_input(&layers, until > Until::GateUp, pass.rows, scope)?;
        if layers.iter().any(|l| l.layer.1.is_some()) {
            let h = rms_norm::again(&mid, Weight::plain(&self.mlp_norm), &rstd, scope)?;
            backward_weights(&layers, reduced, &h, gradients, Into::Overwrite, pass.rows, scope)?;
            scope.pool.recycle(h)?;
        }
        scope.pool.recycle(dgate)?;
        scope.pool.recycle(dup)?;
        let d = match dh {
            Some(dh) => {
                let w = Weight::plain(&self.mlp_norm);
                let d = rms_norm::backward(&mid, w, &rstd, &dh, Some(d), None, scope)?;
                scope.pool.recycle(dh)?;
                d
            }
            None => d,
        };
        scope.pool.recycle(mid)?;
        scope.pool.recycle(rstd)?;
        Ok(d)
    }

    /// Attention: `d`, the gradient of `mid`, becomes that of the block's input, if the pass goes that far.
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        at: Attention,
        d: Tensor,
        lows: &[Kept; 7],
        factors: BlockFactors,
        until: Until,
        gradients: &mut [f32],
        pass: Pass,
    ) -> Result<Tensor, ModelError> {
        let scope = pass.scope;
        let output = [self.upstream(factors, Slot::O, &d, lows)];
        let (dout, reduced) = backward_input(&output, until > Until::Output, pass.rows, scope)?;
        if output[0].layer.1.is_some() {
            backward_weights(&output, reduced, at.out, gradients, Into::Overwrite, pass.rows, scope)?;
        }
        let Some(dout) = dout else { return Ok(d) };
        let saved = attention_backward::Saved { q: at.q, k: at.k, v: at.v, out: at.out, lse: at.lse };
        let Gradients { dq, dk, dv } =
            attention_backward::backward(&saved, &dout, pass.spans, pass.heads, scope)?;
        scope.pool.recycle(dout)?;
        let dq = rotate(dq, pass.positions, pass.rope, Turn::Back)?;
        let dk = rotate(dk, pass.positions, pass.rope, Turn::Back)?;
        let layers = [
            self.upstream(factors, Slot::Q, &dq, lows),
            self.upstream(factors, Slot::K, &dk, lows),
            self.upstream(factors, Slot::V, &dv, lows),
        ];
        let (dh, reduced) = backward_input(&layers, until > Until::Qkv, pass.rows, scope)?;
        if layers.iter().any(|l| l.layer.1.is_some()) {
            let h = rms_norm::again(at.x, Weight::plain(&self.attention_norm), at.rstd, scope)?;
            backward_weights(&layers, reduced, &h, gradients, Into::Overwrite, pass.rows, scope)?;
            scope.pool.recycle(h)?;
        }
        for tensor in [dq, dk, dv] {
            scope.pool.recycle(tensor)?;
        }
        match dh {
            Some(dh) => {
                let w = Weight::plain(&self.attention_norm);
                let d = rms_norm::backward(at.x, w, at.rstd, &dh, Some(d), None, scope)?;
                scope.pool.recycle(dh)?;
                Ok(d)
            }
            None => Ok(d),
        }
    }
}

/// What the MLP's backward pass needs.
struct Mlp {
    mid: Tensor,
    rstd: Tensor,
    gate: Tensor,
    up: Tensor,
}

/// What attention's backward pass needs.
struct Attention<'t> {
    x: &'t Tensor,
    rstd: &'t Tensor,
    q: &'t Tensor,
    k: &'t Tensor,
    v: &'t Tensor,
    out: &'t Tensor,
    lse: &'t Tensor,
}
