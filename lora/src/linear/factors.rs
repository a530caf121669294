//! What is trained of a layer in one pass: low-rank factors with or without a magnitude, or its whole weight.

use std::ops::Range;

use rayon::prelude::*;

use super::FrozenLinear;
use super::dropout::Mask;
use super::magnitude::{Magnitude, row_norms};
use crate::ops::Scope;
use crate::params::{AdapterView, LoraWeights};

/// What is trained of one layer, by the adapters of the pass.
#[derive(Debug)]
pub(crate) struct Factors<'a> {
    forms: Vec<Option<Form<'a>>>,
}

/// What one adapter trains of a layer.
#[derive(Debug)]
pub(super) enum Form<'a> {
    Low(Box<Low<'a>>),
    Whole(Whole<'a>),
}

/// Low-rank factors, and their transposes as the forward pass reads them.
#[derive(Debug)]
pub(super) struct Low<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub a_transposed: Vec<f32>,
    pub b_transposed: Vec<f32>,
    pub start: Option<Start<'a>>,
    pub magnitude: Option<Magnitude>,
    pub mask: Option<Mask>,
    pub rank: usize,
    pub scale: f32,
    pub a_place: Range<usize>,
    pub b_place: Range<usize>,
}

/// The factors `A₀`, `B₀` whose product is subtracted from the weight.
#[derive(Debug)]
pub(super) struct Start<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub a_transposed: Vec<f32>,
    /// `−B₀ᵀ`.
    pub b_negated: Vec<f32>,
}

/// The layer's own weight, trained, as the base stores it.
#[derive(Debug)]
pub(super) struct Whole<'a> {
    pub weight: &'a [f32],
    pub place: Range<usize>,
    pub bias: Option<(&'a [f32], Range<usize>)>,
}

impl<'a> Factors<'a> {
    /// What each adapter of the pass trains of each layer; nothing where none trains any of it.
    ///
    /// The gradients of adapter i go to a buffer that is the adapters' layouts end to end. That the adapters fit the
    /// layers was checked before.
    pub fn prepare<'l>(
        layers: impl Iterator<Item = &'l FrozenLinear>,
        adapters: &[AdapterView<'a>],
        scope: Scope,
    ) -> Vec<Option<Self>> {
        let layers: Vec<_> = layers.collect();
        layers.into_par_iter().map(|layer| Self::of(layer, adapters, scope)).collect()
    }

    /// What each adapter trains of one layer.
    pub fn of(layer: &FrozenLinear, adapters: &[AdapterView<'a>], scope: Scope) -> Option<Self> {
        let mut first = 0;
        let form = |view: &AdapterView<'a>| {
            let form = Form::of(layer, view, first, scope);
            first += view.layout.len();
            form
        };
        let forms: Vec<_> = adapters.iter().map(form).collect();
        forms.iter().any(Option::is_some).then_some(Self { forms })
    }

    /// What an adapter trains of the layer.
    pub(super) fn form(&self, adapter: Option<usize>) -> Option<&Form<'a>> {
        self.forms.get(adapter?)?.as_ref()
    }

    /// Gives the buffers back.
    pub fn recycle(self, scope: Scope) {
        for form in self.forms.into_iter().flatten() {
            let Form::Low(low) = form else { continue };
            let Low { a_transposed, b_transposed, start, .. } = *low;
            let start = start.into_iter().flat_map(|start| [start.a_transposed, start.b_negated]);
            start.chain([a_transposed, b_transposed]).for_each(|buffer| scope.pool.put(buffer));
        }
    }
}

impl<'a> Form<'a> {
    fn of(layer: &FrozenLinear, view: &AdapterView<'a>, first: usize, scope: Scope) -> Option<Self> {
        let shift = |place: &Range<usize>| place.start + first..place.end + first;
        if let Some((weight, place)) = view.whole(&layer.weight_name) {
            let bias = view.whole(&format!("{}.bias", layer.name));
            let bias = bias.map(|(bias, place)| (bias, shift(&place)));
            return Some(Self::Whole(Whole { weight, place: shift(&place), bias }));
        }
        let weights = view.get(&layer.name)?;
        let mut low = Low::of(&weights, Mask::of(view.dropout, &layer.name), scope);
        (low.a_place, low.b_place) = (shift(&low.a_place), shift(&low.b_place));
        if let (Some(magnitude), Some(place)) = (weights.magnitude, &weights.module.magnitude) {
            let norms = row_norms(layer, &low, scope);
            low.magnitude = Some(Magnitude::new(magnitude, norms, shift(place)));
        }
        Some(Self::Low(Box::new(low)))
    }
}

impl<'a> Low<'a> {
    /// The factors without their magnitude.
    pub fn of(weights: &LoraWeights<'a>, mask: Option<Mask>, scope: Scope) -> Self {
        let LoraWeights { a, b, start, module, .. } = *weights;
        let start = start.map(|(a, b)| {
            let mut b_negated = transpose(b, module.rank, scope);
            b_negated.iter_mut().for_each(|b| *b = -*b);
            Start { a, b, a_transposed: transpose(a, module.in_features, scope), b_negated }
        });
        Self {
            a,
            b,
            a_transposed: transpose(a, module.in_features, scope),
            b_transposed: transpose(b, module.rank, scope),
            start,
            magnitude: None,
            mask,
            rank: module.rank,
            scale: module.scale,
            a_place: module.a.clone(),
            b_place: module.b.clone(),
        }
    }
}

fn transpose(x: &[f32], columns: usize, scope: Scope) -> Vec<f32> {
    let mut out = scope.pool.take(x.len());
    let rows = x.len() / columns.max(1);
    for (i, row) in x.chunks_exact(columns).enumerate() {
        for (j, &value) in row.iter().enumerate() {
            out[j * rows + i] = value;
        }
    }
    out
}
