//! One transformer layer: its attention part, then its MLP part.

use candle_core::Tensor;

use super::ModelError;
use super::attention_part::{AttentionPart, AttentionSaved};
use super::cache::LayerCache;
use super::frame::Frame;
use super::mlp_part::{MlpPart, MlpSaved};
use super::pass::{Narrow, Pass};
use super::projection::{Lows, Projection};
use super::until::Until;
use crate::linear::Into;
use crate::ops::Scope;

/// One transformer layer of the base.
#[derive(Debug)]
pub(crate) struct Block {
    pub attention: AttentionPart,
    pub mlp: MlpPart,
}

/// What a block's backward pass needs.
pub(crate) struct Saved {
    attention: AttentionSaved,
    mlp: MlpSaved,
}

/// How far the backward pass goes within one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Depth {
    /// Within the MLP part; `Through` where the attention part needs a gradient.
    pub mlp: Until,
    /// Within the attention part; nothing where it needs none.
    pub attention: Option<Until>,
}

impl Depth {
    /// Through the whole block: blocks below need the gradient of its input.
    pub const THROUGH: Self = Self { mlp: Until::Through, attention: Some(Until::Through) };
}

impl Block {
    /// The place of the lowest tensor of the block that is trained.
    pub fn lowest(&self, pass: &Pass) -> Option<Depth> {
        match self.attention.lowest(pass) {
            Some(until) => Some(Depth { mlp: Until::Through, attention: Some(until) }),
            None => self.mlp.lowest(pass).map(|mlp| Depth { mlp, attention: None }),
        }
    }

    /// `x` `[T, H]` → the block's output, and what its backward pass needs.
    ///
    /// With a cache the tokens follow those that it holds, and are appended to it. With `narrow`, only its rows of the
    /// output are computed.
    pub fn forward(
        &self,
        x: Tensor,
        narrow: Option<Narrow>,
        pass: &Pass,
        cache: Option<&mut LayerCache>,
    ) -> Result<(Tensor, Saved), ModelError> {
        let (x, attention) = self.attention.forward(x, narrow, pass, cache)?;
        let (y, mlp) = self.mlp.forward(x, &pass.narrowed(narrow))?;
        Ok((y, Saved { attention, mlp }))
    }

    /// From the gradient `d` of the block's output: the gradients of what is trained, written to their places, and the
    /// gradient of its input, if the pass goes that far.
    pub fn backward(
        &self,
        saved: Saved,
        d: Tensor,
        narrow: Option<Narrow>,
        depth: Depth,
        gradients: &mut [f32],
        pass: &Pass,
    ) -> Result<Option<Tensor>, ModelError> {
        let d = self.mlp.backward(saved.mlp, d, depth.mlp, gradients, &pass.narrowed(narrow))?;
        match (d, depth.attention) {
            (Some(d), Some(until)) => {
                self.attention.backward(saved.attention, d, narrow, until, gradients, pass)
            }
            (d, _) => {
                saved.attention.recycle(pass.scope)?;
                d.into_iter().try_for_each(|d| pass.scope.pool.recycle(d))?;
                Ok(None)
            }
        }
    }
}

impl Saved {
    /// Gives every buffer back.
    pub fn recycle(self, scope: Scope) -> Result<(), ModelError> {
        self.attention.recycle(scope)?;
        self.mlp.recycle(scope)
    }

    /// The block's input; every other buffer is given back.
    pub fn into_input(self, scope: Scope) -> Result<Tensor, ModelError> {
        self.mlp.recycle(scope)?;
        self.attention.into_input(scope)
    }
}

/// The beginning of a part: its first layers and the norm before them.
pub(crate) struct Start<'p> {
    pub frame: &'p Frame,
    pub layers: &'p Projection,
    pub until: Until,
}

impl Start<'_> {
    /// From the gradients `dys` of the layers' results to that of the residual stream `x`, if the pass goes that far.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        x: &Tensor,
        entry: Option<&Tensor>,
        dys: Vec<Tensor>,
        lows: &Lows,
        residual: Tensor,
        gradients: &mut [f32],
        pass: &Pass,
    ) -> Result<Option<Tensor>, ModelError> {
        let scope = pass.scope;
        let upstream: Vec<&Tensor> = dys.iter().collect();
        let wanted = self.until > Until::Input;
        let (dh, reduced) = self.layers.backward_input(&upstream, lows, wanted, pass)?;
        if self.layers.is_trained(pass) {
            let h = self.frame.entered(x, entry, pass)?;
            let input = h.as_ref().unwrap_or(x);
            self.layers.backward_weights(
                &upstream,
                lows,
                reduced,
                input,
                gradients,
                Into::Overwrite,
                pass,
            )?;
            if let Some(h) = h {
                scope.pool.recycle(h)?;
            }
        }
        dys.into_iter().try_for_each(|dy| scope.pool.recycle(dy))?;
        let Some(dh) = dh else {
            scope.pool.recycle(residual)?;
            return Ok(None);
        };
        let d = self.frame.enter_backward(x, entry, dh, residual, gradients, pass)?;
        if self.until == Until::Through {
            return Ok(Some(d));
        }
        scope.pool.recycle(d)?;
        Ok(None)
    }
}
