//! The frozen parameters of a model, and what one pass reads and trains of them.

use std::ops::Range;

use super::ModelError;
use crate::linear::{Adapted, Factors, FrozenLinear};
use crate::ops::Scope;
use crate::ops::norm::{Norm, NormGradients};
use crate::params::AdapterView;
use candle_core::Tensor;
use lorafleet_spec::base::NormKind;

/// A linear layer, by its place among the model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinearId(pub usize);

/// A norm, by its place among the model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NormId(pub usize);

/// A norm of the base.
#[derive(Debug)]
pub(crate) struct FrozenNorm {
    /// Prefix of `.weight` and `.bias`.
    pub name: String,
    /// Its formula.
    pub kind: NormKind,
    /// Added to the mean square or the variance.
    pub eps: f32,
    /// `[H]`.
    pub weight: Vec<f32>,
    /// `[H]`, of layer norms.
    pub bias: Option<Vec<f32>>,
}

/// The linear layers and norms of a model.
#[derive(Debug, Default)]
pub(crate) struct Parameters {
    /// In the order of the modules.
    pub linears: Vec<FrozenLinear>,
    /// In the order of the modules.
    pub norms: Vec<FrozenNorm>,
}

/// A norm in one pass: the base's weights, or those that are trained in their place.
#[derive(Debug)]
pub(crate) struct BoundNorm<'a> {
    norm: Norm<'a>,
    weight: Option<Range<usize>>,
    bias: Option<Range<usize>>,
}

/// What one pass reads: the base's parameters, and what is adapted or trained of them.
#[derive(Debug)]
pub(crate) struct Bound<'a> {
    parameters: &'a Parameters,
    factors: Vec<Option<Factors<'a>>>,
    norms: Vec<BoundNorm<'a>>,
}

impl<'a> Bound<'a> {
    /// Looks up what the adapter has of each layer and norm.
    pub fn new(parameters: &'a Parameters, adapter: Option<&AdapterView<'a>>, scope: Scope) -> Self {
        let norms = parameters.norms.iter().map(|norm| BoundNorm::new(norm, adapter)).collect();
        Self {
            parameters,
            factors: Factors::prepare(parameters.linears.iter(), views(adapter), scope),
            norms,
        }
    }

    /// A layer with what is adapted of it.
    pub fn linear(&self, id: LinearId) -> Adapted<'_, 'a> {
        (&self.parameters.linears[id.0], self.factors[id.0].as_ref())
    }

    /// Whether something of a layer is adapted or trained.
    pub fn trains(&self, id: LinearId) -> bool {
        self.factors[id.0].is_some()
    }

    /// A norm.
    pub fn norm(&self, id: NormId) -> &BoundNorm<'a> {
        &self.norms[id.0]
    }

    /// Gives the buffers back.
    pub fn recycle(self, scope: Scope) {
        self.factors.into_iter().flatten().for_each(|factors| factors.recycle(scope));
    }
}

/// The adapters of a pass: one, or none.
pub(crate) fn views<'v, 'a>(adapter: Option<&'v AdapterView<'a>>) -> &'v [AdapterView<'a>] {
    adapter.map_or(&[], std::slice::from_ref)
}

impl<'a> BoundNorm<'a> {
    fn new(frozen: &'a FrozenNorm, adapter: Option<&AdapterView<'a>>) -> Self {
        let whole = |name: &str| adapter.and_then(|view| view.whole(&format!("{}.{name}", frozen.name)));
        let (weight, weight_place) = whole("weight").unzip();
        let (bias, bias_place) = whole("bias").unzip();
        let norm = Norm {
            kind: frozen.kind,
            weight: weight.unwrap_or(&frozen.weight),
            bias: bias.or(frozen.bias.as_deref()),
            eps: frozen.eps,
        };
        Self { norm, weight: weight_place, bias: bias_place }
    }

    /// Whether its weight or bias is trained.
    pub fn is_trained(&self) -> bool {
        self.weight.is_some() || self.bias.is_some()
    }

    /// `norm(x)`, or `residual + norm(x)`, and the statistics that the backward pass needs.
    pub fn forward(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        scope: Scope,
    ) -> Result<(Tensor, Tensor), ModelError> {
        Ok(self.norm.forward(x, residual, scope)?)
    }

    /// `norm(x)` again, the same bits.
    pub fn again(&self, x: &Tensor, stats: &Tensor, scope: Scope) -> Result<Tensor, ModelError> {
        Ok(self.norm.again(x, stats, scope)?)
    }

    /// The gradient of `x`, added to `residual` if one is given; the gradients of weight and bias go to their places.
    pub fn backward(
        &self,
        x: &Tensor,
        stats: &Tensor,
        dy: &Tensor,
        residual: Option<Tensor>,
        gradients: &mut [f32],
        scope: Scope,
    ) -> Result<Tensor, ModelError> {
        self.zero(gradients);
        self.backward_add(x, stats, dy, residual, gradients, scope)
    }

    /// Sets the gradients of weight and bias to zero.
    pub fn zero(&self, gradients: &mut [f32]) {
        [&self.weight, &self.bias].into_iter().flatten().for_each(|place| gradients[place.clone()].fill(0.0));
    }

    /// As [`BoundNorm::backward`], but the gradients of weight and bias are added to what stands at their places.
    pub fn backward_add(
        &self,
        x: &Tensor,
        stats: &Tensor,
        dy: &Tensor,
        residual: Option<Tensor>,
        gradients: &mut [f32],
        scope: Scope,
    ) -> Result<Tensor, ModelError> {
        let (weight, bias) = match (&self.weight, &self.bias) {
            (Some(weight), Some(bias)) => {
                let [weight, bias] = gradients
                    .get_disjoint_mut([weight.clone(), bias.clone()])
                    .expect("a layout gives each tensor a place of its own");
                (Some(weight), Some(bias))
            }
            (weight, bias) => match (weight.clone(), bias.clone()) {
                (Some(place), _) => (Some(&mut gradients[place]), None),
                (None, Some(place)) => (None, Some(&mut gradients[place])),
                (None, None) => (None, None),
            },
        };
        let places = NormGradients { weight, bias };
        Ok(self.norm.backward(x, stats, dy, residual, places, scope)?)
    }
}
