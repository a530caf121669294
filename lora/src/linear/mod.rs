//! A linear layer with what is trained of it: the one place where `x·Wᵀ` meets `B·A`.
//!
//! `y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ`; backward `dx = dy·W + s·(dy·B)·A`, `dB = s·dyᵀ·(x·Aᵀ)`, `dA = s·(dy·B)ᵀ·x`; nothing for W
//! (LoRA, arXiv:2106.09685). The adapter's product is summed in the same registers as the base's, so no result is
//! read again to add to it. What else a layer can be, beside plain LoRA:
//!
//! - **DoRA** (arXiv:2402.09353): `y = m/‖W + s·B·A‖ ⊙ (x·Wᵀ + s·(x·Aᵀ)·Bᵀ) + bias`, the norm of each row taken as constant
//!   in the backward pass (the paper's section 4.3).
//! - **A frozen start** (PiSSA, OLoRA): `W − s·B₀·A₀` stands for W, as two more terms of the same products.
//! - **Dropout** of the adapter's input, never of the base's; under DoRA of both products that the magnitude scales.
//! - **A whole weight** in W's place, with `dW = dyᵀ·x` (full fine-tuning, modules to save).
//!
//! Rows of one batch may belong to different adapters, or to none: [`Rows`] says which. Each row's bits are those that
//! it has alone.

mod backward;
mod dropout;
pub(crate) mod embedding;
mod factors;
mod forward;
mod magnitude;
mod rows;
#[cfg(test)]
mod tests;

pub(crate) use backward::{Into, Reduced, Upstream, backward_input, backward_weights};
pub(crate) use factors::Factors;
pub(crate) use forward::{Kept, forward};
pub(crate) use magnitude::norm;
pub(crate) use rows::{Rows, TokenKey};

use lorafleet_spec::job::Precision;

use crate::ops::Scope;
use crate::ops::product::{Left, Product, Right, run};
use crate::ops::weights::Weights;

const OP: &str = "linear";

/// A linear layer of the base. Its weight is kept once: the forward and the backward pass read the same panels.
#[derive(Debug)]
pub(crate) struct FrozenLinear {
    /// Full name, e.g. `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Name of the tensor that is its weight; another module's where they are tied.
    pub weight_name: String,
    /// Width of its input.
    pub in_features: usize,
    /// Width of its output.
    pub out_features: usize,
    /// Whether the base stores the weight as `[in, out]` (gpt2's Conv1D).
    pub conv1d: bool,
    weight: Weights,
    bias: Option<Vec<f32>>,
}

impl FrozenLinear {
    /// A layer of a row-major weight `[out, in]` and an optional bias of length `out`.
    pub fn new(
        name: String,
        weight: &[f32],
        out_features: usize,
        bias: Option<Vec<f32>>,
        precision: Precision,
    ) -> Self {
        let in_features = weight.len() / out_features.max(1);
        let weight = Weights::new(weight, out_features, in_features, precision);
        Self::of(name, weight, (in_features, out_features), bias, false)
    }

    /// A layer of a row-major weight `[in, out]`, as gpt2 stores it.
    pub fn conv1d(
        name: String,
        weight: &[f32],
        out_features: usize,
        bias: Option<Vec<f32>>,
        precision: Precision,
    ) -> Self {
        let in_features = weight.len() / out_features.max(1);
        let weight = Weights::transposed(weight, out_features, in_features, precision);
        Self::of(name, weight, (in_features, out_features), bias, true)
    }

    fn of(
        name: String,
        weight: Weights,
        (in_features, out_features): (usize, usize),
        bias: Option<Vec<f32>>,
        conv1d: bool,
    ) -> Self {
        let weight_name = format!("{name}.weight");
        Self { name, weight_name, in_features, out_features, conv1d, weight, bias }
    }

    /// The same layer, its weight being another module's tensor (a tied head).
    pub fn tied_to(mut self, weight_name: &str) -> Self {
        weight_name.clone_into(&mut self.weight_name);
        self
    }

    /// The weight, `[out, in]`: rows can be read from it.
    pub fn rows(&self) -> &Weights {
        &self.weight
    }

    /// `out[m, rows] = x·Wᵀ`, without an adapter, into a slice.
    pub fn project(&self, x: &[f32], out: &mut [f32], scope: Scope) {
        let m = x.len() / self.in_features;
        let product = Product::new(out, m, self.out_features);
        run([self.bias_term(self.weight_term(product, x), self.bias.as_deref())], scope.flops);
    }

    /// `out[m, in] = dy·W`, without an adapter, into a slice.
    pub fn project_back(&self, dy: &[f32], out: &mut [f32], scope: Scope) {
        let m = dy.len() / self.out_features;
        run([self.back_term(Product::new(out, m, self.in_features), dy)], scope.flops);
    }

    /// Adds `x·Wᵀ`.
    fn weight_term<'a>(&'a self, product: Product<'a>, x: &'a [f32]) -> Product<'a> {
        let k = self.in_features;
        product.term(Left::rows(x, k), Right::Forward(&self.weight), k)
    }

    /// Adds `dy·W`.
    fn back_term<'a>(&'a self, product: Product<'a>, dy: &'a [f32]) -> Product<'a> {
        let k = self.out_features;
        product.term(Left::rows(dy, k), Right::Backward(&self.weight), k)
    }

    /// Adds the bias to every row: a column of ones times the bias.
    fn bias_term<'a>(&'a self, product: Product<'a>, bias: Option<&'a [f32]>) -> Product<'a> {
        match bias {
            Some(bias) => {
                product.term(Left::constant(&ONE), Right::Rows { data: bias, stride: self.out_features }, 1)
            }
            None => product,
        }
    }
}

static ONE: [f32; 1] = [1.0];

/// A layer with what is trained of it in this pass.
pub(crate) type Adapted<'l, 'a> = (&'l FrozenLinear, Option<&'l Factors<'a>>);

/// Disjoint parts of a buffer, in the order in which they are asked for.
fn carve<'g>(buffer: &'g mut [f32], places: &[std::ops::Range<usize>]) -> Vec<&'g mut [f32]> {
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by_key(|&i| places[i].start);
    let (mut rest, mut at) = (buffer, 0);
    let mut parts: Vec<_> = places.iter().map(|_| None).collect();
    for i in order {
        let (_, tail) = std::mem::take(&mut rest).split_at_mut(places[i].start - at);
        let (part, tail) = tail.split_at_mut(places[i].len());
        (rest, at) = (tail, places[i].end);
        parts[i] = Some(part);
    }
    parts.into_iter().flatten().collect()
}
