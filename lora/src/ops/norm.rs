//! The norm of a family, as data: one call for [`rms_norm`], its `1 + w` variant and [`layer_norm`].

use candle_core::Tensor;
use lorafleet_spec::base::NormKind;

use super::layer_norm::{self, Affine, AffineGradients};
use super::rms_norm::{self, Weight};
use super::{OpError, Scope};

/// One norm with its weight `[H]` and, for [`NormKind::Layer`] only, its bias `[H]`.
///
/// A tensor whose columns are n times H is normed piece by piece: queries and keys head by head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm<'a> {
    pub kind: NormKind,
    pub weight: &'a [f32],
    pub bias: Option<&'a [f32]>,
    pub eps: f32,
}

/// Where the gradients of weight and bias `[H]` are **added**; `None` where nobody wants them.
pub(crate) type NormGradients<'a> = AffineGradients<'a>;

impl<'a> Norm<'a> {
    fn rms(&self) -> Weight<'a> {
        match self.kind {
            NormKind::RmsPlusOne => Weight::plus_one(self.weight),
            NormKind::Rms | NormKind::Layer => Weight::plain(self.weight),
        }
    }

    fn affine(&self) -> Affine<'a> {
        let bias = self.bias.unwrap_or(&[]);
        assert_eq!(bias.len(), self.weight.len(), "a layer norm has a bias");
        Affine { weight: self.weight, bias }
    }

    /// `x` `[T, n·H]` → `norm(x)` or, with a residual, `residual + norm(x)`, and the statistics for the backward pass.
    pub fn forward(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        scope: Scope,
    ) -> Result<(Tensor, Tensor), OpError> {
        match self.kind {
            NormKind::Layer => layer_norm::forward(x, self.affine(), self.eps, residual, scope),
            _ => rms_norm::forward(x, self.rms(), self.eps, residual, scope),
        }
    }

    /// `norm(x)` again from the statistics, the same bits.
    pub fn again(&self, x: &Tensor, stats: &Tensor, scope: Scope) -> Result<Tensor, OpError> {
        match self.kind {
            NormKind::Layer => layer_norm::again(x, self.affine(), stats, scope),
            _ => rms_norm::again(x, self.rms(), stats, scope),
        }
    }

    /// The gradient of `x` from `dy`, the gradient of `norm(x)`: **added to** `residual` in its place, if one is given.
    pub fn backward(
        &self,
        x: &Tensor,
        stats: &Tensor,
        dy: &Tensor,
        residual: Option<Tensor>,
        gradients: NormGradients,
        scope: Scope,
    ) -> Result<Tensor, OpError> {
        match self.kind {
            NormKind::Layer => layer_norm::backward(x, self.affine(), stats, dy, residual, gradients, scope),
            _ => rms_norm::backward(x, self.rms(), stats, dy, residual, gradients.weight, scope),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::matrix;
    use crate::ops::tests::{close, noise, scoped, values};

    #[test]
    fn each_kind_is_what_it_says() {
        let (x, w, b) = (matrix(vec![3.0, -1.0, 3.0, -1.0], 4).unwrap(), [1.0, 2.0, 0.5, -1.0], [0.25; 4]);
        let y = |kind, bias| {
            let norm = Norm { kind, weight: &w, bias, eps: 0.0 };
            scoped(|scope| values(&norm.forward(&x, None, scope).unwrap().0))
        };
        let rms = 5f32.sqrt();
        close(&y(NormKind::Rms, None), &[3.0 / rms, -2.0 / rms, 1.5 / rms, 1.0 / rms], 1e-6);
        close(&y(NormKind::RmsPlusOne, None), &[6.0 / rms, -3.0 / rms, 4.5 / rms, 0.0], 1e-6);
        close(&y(NormKind::Layer, Some(&b)), &[1.25, -1.75, 0.75, 1.25], 1e-6);
    }

    #[test]
    fn gradients_reach_their_places() {
        let (x, dy) = (matrix(noise(60, 1), 6).unwrap(), matrix(noise(60, 2), 6).unwrap());
        let (w, b) = (noise(6, 3), noise(6, 4));
        for kind in [NormKind::Rms, NormKind::RmsPlusOne, NormKind::Layer] {
            let norm = Norm { kind, weight: &w, bias: Some(&b), eps: 1e-6 };
            let (mut dw, mut db) = ([1.0; 6], [1.0; 6]);
            scoped(|scope| {
                let (_, stats) = norm.forward(&x, None, scope).unwrap();
                let gradients = NormGradients { weight: Some(&mut dw), bias: Some(&mut db) };
                norm.backward(&x, &stats, &dy, None, gradients, scope).unwrap();
            });
            assert!(dw.iter().all(|&g| g != 1.0), "{kind:?}");
            assert_eq!(db.iter().all(|&g| g != 1.0), kind == NormKind::Layer, "{kind:?}");
        }
    }
}
