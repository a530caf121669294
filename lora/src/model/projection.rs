//! Linear layers that share an input: q, k and v, gate and up, each with a weight of its own or all in one.

use candle_core::Tensor;

use super::ModelError;
use super::columns::{join, split};
use super::parameters::LinearId;
use super::pass::Pass;
use crate::linear::{Into, Kept, Reduced, Upstream, backward_input, backward_weights, forward};
use crate::ops::Scope;

/// Layers on one input, whose outputs are used side by side.
#[derive(Clone, Debug)]
pub(crate) struct Projection {
    layers: Vec<LinearId>,
    /// Where one layer computes several outputs: their widths.
    fused: Option<Vec<usize>>,
}

/// What a projection gives.
pub(crate) struct Projected {
    /// The outputs `[T, width]`.
    pub ys: Vec<Tensor>,
    /// What the backward pass needs.
    pub lows: Lows,
}

/// What each layer keeps for its backward pass.
#[derive(Debug, Default)]
pub(crate) struct Lows(Vec<Kept>);

impl Lows {
    /// Gives the buffers back.
    pub fn recycle(self, scope: Scope) {
        self.0.into_iter().for_each(|kept| kept.recycle(scope));
    }
}

impl Projection {
    /// One layer per output.
    pub fn separate(layers: Vec<LinearId>) -> Self {
        Self { layers, fused: None }
    }

    /// One layer whose output is cut into these widths.
    pub fn fused(layer: LinearId, widths: Vec<usize>) -> Self {
        Self { layers: vec![layer], fused: Some(widths) }
    }

    /// Whether one of the layers is adapted or trained.
    pub fn is_trained(&self, pass: &Pass) -> bool {
        self.layers.iter().any(|&id| pass.bound.trains(id))
    }

    /// `x` `[T, in]` → the outputs; `plus` is added to each.
    pub fn forward(&self, x: &Tensor, plus: Option<&Tensor>, pass: &Pass) -> Result<Projected, ModelError> {
        let layers: Vec<_> = self.layers.iter().map(|&id| pass.bound.linear(id)).collect();
        let outputs = forward(x, &layers, plus, pass.rows, pass.scope)?;
        let (mut ys, lows): (Vec<_>, _) = outputs.into_iter().map(|output| (output.y, output.kept)).unzip();
        if let Some(widths) = &self.fused {
            ys = split(ys.pop().expect("one output per layer"), widths, pass.scope)?;
        }
        Ok(Projected { ys, lows: Lows(lows) })
    }

    /// The single output of a projection of one layer.
    pub fn forward_one(
        &self,
        x: &Tensor,
        plus: Option<&Tensor>,
        pass: &Pass,
    ) -> Result<(Tensor, Lows), ModelError> {
        let Projected { mut ys, lows } = self.forward(x, plus, pass)?;
        Ok((ys.pop().expect("one output per layer"), lows))
    }

    /// Gradients of the outputs, as those of the layers.
    pub fn upstream(&self, dys: Vec<Tensor>, pass: &Pass) -> Result<Vec<Tensor>, ModelError> {
        Ok(if self.fused.is_some() { vec![join(dys, pass.scope)?] } else { dys })
    }

    /// The gradient of the input, if it is wanted, and what [`Projection::backward_weights`] needs.
    pub fn backward_input(
        &self,
        dys: &[&Tensor],
        lows: &Lows,
        wanted: bool,
        pass: &Pass,
    ) -> Result<(Option<Tensor>, Reduced), ModelError> {
        Ok(backward_input(&self.layers(dys, lows, pass), wanted, pass.rows, pass.scope)?)
    }

    /// Gradients of what is trained of the layers, written or added to their places. `x` is the input.
    #[allow(clippy::too_many_arguments)]
    pub fn backward_weights(
        &self,
        dys: &[&Tensor],
        lows: &Lows,
        reduced: Reduced,
        x: &Tensor,
        gradients: &mut [f32],
        into: Into,
        pass: &Pass,
    ) -> Result<(), ModelError> {
        let layers = self.layers(dys, lows, pass);
        Ok(backward_weights(&layers, reduced, x, gradients, into, pass.rows, pass.scope)?)
    }

    fn layers<'l, 'a>(
        &self,
        dys: &[&'l Tensor],
        lows: &'l Lows,
        pass: &'l Pass<'a>,
    ) -> Vec<Upstream<'l, 'a>> {
        let layers = self.layers.iter().zip(dys).zip(&lows.0);
        layers.map(|((&id, &dy), kept)| Upstream { layer: pass.bound.linear(id), dy, kept }).collect()
    }
}
