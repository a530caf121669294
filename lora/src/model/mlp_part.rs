//! The MLP part of a block: `down(activation(gate(x)) · up(x))`, or `down(activation(up(x)))`, within its frame.

use candle_core::Tensor;

use super::ModelError;
use super::block::Start;
use super::frame::{Exit, Frame};
use super::pass::Pass;
use super::projection::{Lows, Projected, Projection};
use super::until::Until;
use crate::linear::Into;
use crate::ops::Scope;
use crate::ops::activation::{self, Backward, Inner};
use lorafleet_spec::base::Activation;

/// One MLP part of the base.
#[derive(Debug)]
pub(crate) struct MlpPart {
    /// Norms and residual around it.
    pub frame: Frame,
    /// Gate and up (of one layer or of two), or up alone.
    pub inner: Projection,
    /// The MLP has a gate.
    pub gated: bool,
    /// What the gate, or up alone, goes through.
    pub activation: Activation,
    /// The output layer.
    pub output: Projection,
}

/// What its backward pass needs: everything else is made again.
pub(crate) struct MlpSaved {
    /// The residual stream before it.
    x: Tensor,
    entry: Option<Tensor>,
    inner: Inner,
    exit: Option<Exit>,
    inner_lows: Lows,
    output_lows: Lows,
}

impl MlpPart {
    /// How far down the backward pass must go for what is trained of this part.
    pub fn lowest(&self, pass: &Pass) -> Option<Until> {
        Until::lowest([
            (Until::Before, pass.trains_norm(self.frame.before)),
            (Until::Input, self.inner.is_trained(pass)),
            (Until::Output, self.output.is_trained(pass)),
            (Until::After, pass.trains_norm(self.frame.after)),
        ])
    }

    /// The residual stream `x` `[T, H]` → the new one, and what the backward pass needs.
    pub fn forward(&self, x: Tensor, pass: &Pass) -> Result<(Tensor, MlpSaved), ModelError> {
        let scope = pass.scope;
        let entry = self.frame.enter(&x, pass)?;
        let Projected { ys, lows: inner_lows } =
            self.inner.forward(entry.as_ref().map_or(&x, |entry| &entry.h), None, pass)?;
        let entry = match entry {
            Some(entry) => {
                scope.pool.recycle(entry.h)?;
                Some(entry.stats)
            }
            None => None,
        };
        let inner = self.inner_of(ys);
        let act = activation::forward(&inner, self.activation, scope)?;
        let (out, output_lows) = self.output.forward_one(&act, self.frame.plus(&x), pass)?;
        scope.pool.recycle(act)?;
        let (y, exit) = self.frame.leave(&x, out, pass)?;
        Ok((y, MlpSaved { x, entry, inner, exit, inner_lows, output_lows }))
    }

    fn inner_of(&self, ys: Vec<Tensor>) -> Inner {
        let mut ys = ys.into_iter();
        let first = ys.next().expect("an MLP has an inner layer");
        match ys.next() {
            Some(up) => Inner::Gated { gate: first, up },
            None if self.gated => Inner::Fused(first),
            None => Inner::Plain(first),
        }
    }

    /// From the gradient `d` of the new residual stream: the gradients of what is trained, at their places, and the
    /// gradient of the old stream, if the pass goes that far.
    pub fn backward(
        &self,
        saved: MlpSaved,
        d: Tensor,
        until: Until,
        gradients: &mut [f32],
        pass: &Pass,
    ) -> Result<Option<Tensor>, ModelError> {
        let scope = pass.scope;
        let MlpSaved { x, entry, inner, exit, inner_lows, output_lows } = saved;
        let leaving = self.frame.leave_backward(exit, d, gradients, pass)?;
        let dys = if until == Until::After {
            inner.recycle(scope)?;
            None
        } else {
            self.output_backward(leaving.output(), inner, &output_lows, until, gradients, pass)?
        };
        let residual = leaving.into_residual(scope)?;
        let d = match dys {
            Some(dys) => {
                let at = Start { frame: &self.frame, layers: &self.inner, until };
                at.backward(&x, entry.as_ref(), dys, &inner_lows, residual, gradients, pass)?
            }
            None => {
                scope.pool.recycle(residual)?;
                None
            }
        };
        recycle([Some(x), entry], [inner_lows, output_lows], scope)?;
        Ok(d)
    }

    /// Gradients of the output layer; those of gate and up, if they are wanted.
    fn output_backward(
        &self,
        d: &Tensor,
        inner: Inner,
        lows: &Lows,
        until: Until,
        gradients: &mut [f32],
        pass: &Pass,
    ) -> Result<Option<Vec<Tensor>>, ModelError> {
        let scope = pass.scope;
        let (dact, reduced) = self.output.backward_input(&[d], lows, until > Until::Output, pass)?;
        let (act, dys) = match dact {
            Some(dact) => {
                let Backward { d, act } = activation::backward(inner, self.activation, dact)?;
                (act, Some(gradients_of(d)))
            }
            None => {
                let act = activation::forward(&inner, self.activation, scope)?;
                inner.recycle(scope)?;
                (act, None)
            }
        };
        self.output.backward_weights(&[d], lows, reduced, &act, gradients, Into::Overwrite, pass)?;
        scope.pool.recycle(act)?;
        Ok(dys)
    }
}

/// The gradients of the inner layers' results.
fn gradients_of(inner: Inner) -> Vec<Tensor> {
    match inner {
        Inner::Plain(d) | Inner::Fused(d) => vec![d],
        Inner::Gated { gate, up } => vec![gate, up],
    }
}

impl MlpSaved {
    /// Gives every buffer back.
    pub fn recycle(self, scope: Scope) -> Result<(), ModelError> {
        let Self { x, entry, inner, exit, inner_lows, output_lows } = self;
        if let Some(exit) = exit {
            exit.recycle(scope)?;
        }
        inner.recycle(scope)?;
        recycle([Some(x), entry], [inner_lows, output_lows], scope)
    }
}

fn recycle(tensors: [Option<Tensor>; 2], lows: [Lows; 2], scope: Scope) -> Result<(), ModelError> {
    lows.into_iter().for_each(|lows| lows.recycle(scope));
    for tensor in tensors.into_iter().flatten() {
        scope.pool.recycle(tensor)?;
    }
    Ok(())
}
