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
use crate::ops::swiglu;
use lorafleet_spec::base::Activation;

/// One MLP part of the base.
#[derive(Debug)]
pub(crate) struct MlpPart {
    /// Norms and residual around it.
    pub frame: Frame,
    /// Gate and up, or up alone.
    pub inner: Projection,
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
    /// Gate and up, or up alone.
    inner: Vec<Tensor>,
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
        let Projected { ys: inner, lows: inner_lows } =
            self.inner.forward(entry.as_ref().map_or(&x, |entry| &entry.h), None, pass)?;
        let entry = match entry {
            Some(entry) => {
                scope.pool.recycle(entry.h)?;
                Some(entry.stats)
            }
            None => None,
        };
        let act = self.activate(&inner, scope)?;
        let (out, output_lows) = self.output.forward_one(&act, self.frame.plus(&x), pass)?;
        scope.pool.recycle(act)?;
        let (y, exit) = self.frame.leave(&x, out, pass)?;
        Ok((y, MlpSaved { x, entry, inner, exit, inner_lows, output_lows }))
    }

    fn activate(&self, inner: &[Tensor], scope: Scope) -> Result<Tensor, ModelError> {
        Ok(match inner {
            [gate, up] => swiglu::forward(gate, up, scope)?,
            _ => unreachable!(),
        })
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
            inner.into_iter().try_for_each(|tensor| scope.pool.recycle(tensor))?;
            None
        } else {
            self.output_backward(leaving.output(), inner, &output_lows, until, gradients, pass)?
        };
        let residual = leaving.into_residual(scope)?;
        let d = match dys {
            Some(dys) => {
                let dys = self.inner.upstream(dys, pass)?;
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
        inner: Vec<Tensor>,
        lows: &Lows,
        until: Until,
        gradients: &mut [f32],
        pass: &Pass,
    ) -> Result<Option<Vec<Tensor>>, ModelError> {
        let scope = pass.scope;
        let (dact, reduced) = self.output.backward_input(&[d], lows, until > Until::Output, pass)?;
        let (act, dys) = match dact {
            Some(dact) => {
                let (act, dys) = self.activate_backward(inner, dact)?;
                (act, Some(dys))
            }
            None => {
                let act = self.activate(&inner, scope)?;
                inner.into_iter().try_for_each(|tensor| scope.pool.recycle(tensor))?;
                (act, None)
            }
        };
        self.output.backward_weights(&[d], lows, reduced, &act, gradients, Into::Overwrite, pass)?;
        scope.pool.recycle(act)?;
        Ok(dys)
    }

    /// The activation's result again, and the gradients of its inputs, in the place of what it is given.
    fn activate_backward(
        &self,
        inner: Vec<Tensor>,
        dact: Tensor,
    ) -> Result<(Tensor, Vec<Tensor>), ModelError> {
        let mut inner = inner.into_iter();
        let first = inner.next().expect("an MLP has an inner layer");
        Ok(match inner.next() {
            Some(up) => {
                let back = swiglu::backward(first, up, dact)?;
                (back.act, vec![back.dgate, back.dup])
            }
            None => unreachable!(),
        })
    }
}

impl MlpSaved {
    /// Gives every buffer back.
    pub fn recycle(self, scope: Scope) -> Result<(), ModelError> {
        let Self { x, entry, inner, exit, inner_lows, output_lows } = self;
        if let Some(exit) = exit {
            exit.recycle(scope)?;
        }
        inner.into_iter().try_for_each(|tensor| scope.pool.recycle(tensor))?;
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
