//! Floating point operations: what of a model is multiplied, how often, by how many tokens.

use std::collections::{HashMap, HashSet};

use super::Load;
use crate::{
    base::{BaseShape, EmbeddingRole, HeadShape, LinearModule, Role},
    targets::{Saved, Target, TargetKind},
};

/// What a job trains of a base.
pub(super) struct Trained<'a> {
    /// Adapter's parameters of a linear layer, by the layer's name.
    adapters: HashMap<&'a str, u64>,
    /// Modules whose weights are trained whole.
    whole: HashSet<&'a str>,
    /// The lowest transformer layer with anything trained in it; as many as there are layers where only what follows them
    /// is trained. The backward pass ends there.
    pub lowest: usize,
    /// The output head of a language model is trained, itself or as the embedding that it is tied to.
    pub head: bool,
    /// Ranks of all adapters in a transformer layer, summed, on average over those from `lowest` on.
    pub ranks: f64,
    /// Parameters that are trained.
    pub parameters: u64,
}

impl<'a> Trained<'a> {
    pub fn new(shape: &'a BaseShape, targets: &'a [Target], saved: &'a Saved) -> Self {
        let adapters: HashMap<_, _> =
            targets.iter().map(|target| (target.module.as_str(), target.parameters())).collect();
        let whole: HashSet<_> = saved
            .tensors
            .iter()
            .filter_map(|(name, _)| name.rsplit_once('.'))
            .map(|(module, _)| module)
            .collect();
        let is_trained = |name: &str| whole.contains(name) || adapters.contains_key(name);
        let linears = shape.linears.iter().map(|linear| (linear.name.as_str(), linear.layer));
        let norms = shape.norms.iter().map(|norm| (norm.name.as_str(), norm.layer));
        let in_layers =
            linears.chain(norms).filter(|(name, _)| is_trained(name)).filter_map(|(_, layer)| layer);
        let embedding = shape.embeddings.iter().any(|embedding| is_trained(&embedding.name));
        let tied = shape.embedding_at(EmbeddingRole::Tokens).filter(|_| shape.tied);
        let head = shape.linear_at(None, Role::Head).is_some_and(|head| is_trained(&head.name))
            || tied.is_some_and(|embedding| whole.contains(embedding.name.as_str()));
        let lowest = if embedding { 0 } else { in_layers.min().unwrap_or(shape.layers) };
        let ranks: usize = targets.iter().filter(|t| t.kind == TargetKind::Linear).map(|t| t.rank).sum();
        let parameters = targets.iter().map(Target::parameters).sum::<u64>() + saved.parameters();
        let layers = (shape.layers - lowest).max(1);
        Self { adapters, whole, lowest, head, ranks: ranks as f64 / layers as f64, parameters }
    }

    /// Whether a linear layer's own weights are trained.
    fn is_whole(&self, linear: &LinearModule) -> bool {
        let is_whole = self.whole.contains(linear.name.as_str());
        // A tied head has no tensor of its own.
        is_whole
            || (linear.role == Role::Head && self.head && !self.adapters.contains_key(linear.name.as_str()))
    }
}

/// FLOPs of one pass over a data set: each weight once forward (2 a token), once for its input's gradient where something
/// below is trained, once more where it is trained itself; adapters three times. The head sees tokens with a label only, or
/// one token of each example.
pub(super) fn flops(shape: &BaseShape, trained: &Trained<'_>, recompute: bool, load: Load) -> f64 {
    let passes = |linear: &LinearModule| -> f64 {
        let is_reached = linear.layer.is_none_or(|layer| layer >= trained.lowest);
        let again = recompute && linear.layer.is_some() && is_reached;
        let more = [is_reached, trained.is_whole(linear), again];
        1.0 + more.into_iter().filter(|one| *one).count() as f64
    };
    let seen = |linear: &LinearModule| match linear.role {
        Role::Head => load.labelled as f64,
        role if role.is_last() => load.examples as f64,
        _ => load.tokens as f64,
    };
    let linears: f64 = shape
        .linears
        .iter()
        .map(|linear| {
            let weights = (linear.in_features * linear.out_features) as f64;
            let adapter = trained.adapters.get(linear.name.as_str()).copied().unwrap_or_default() as f64;
            seen(linear) * (2.0 * weights * passes(linear) + 6.0 * adapter)
        })
        .sum();
    linears + attention(shape, trained.lowest, recompute, load)
}

/// Scores and sums of values: 4 a pair of tokens and channel of queries forward, twice that backward.
fn attention(shape: &BaseShape, lowest: usize, recompute: bool, load: Load) -> f64 {
    let mean = load.tokens as f64 / load.examples.max(1) as f64;
    let layers = shape.layer_kinds.iter().enumerate();
    layers
        .map(|(layer, kind)| {
            let passes = match (layer >= lowest, recompute) {
                (false, _) => 1.0,
                (true, false) => 3.0,
                (true, true) => 4.0,
            };
            let seen = visible(mean, kind.window.map(|window| window as f64), shape.attention.causal);
            passes * 4.0 * load.tokens as f64 * seen * shape.queries() as f64
        })
        .sum()
}

/// Tokens that a token sees on average in a sequence of `length`.
fn visible(length: f64, window: Option<f64>, causal: bool) -> f64 {
    match (causal, window.filter(|window| *window < length)) {
        (true, None) => (length + 1.0) / 2.0,
        // The first `window` tokens see fewer.
        (true, Some(window)) => window - window * (window - 1.0) / (2.0 * length),
        (false, None) => length,
        (false, Some(window)) => (2.0 * window - 1.0).min(length),
    }
}

/// Logits of one row.
pub(super) fn head_outputs(shape: &BaseShape) -> usize {
    match shape.head {
        HeadShape::LanguageModel => shape.embedding_at(EmbeddingRole::Tokens).map_or(0, |table| table.rows),
        HeadShape::Classifier { labels, .. } => labels,
    }
}
