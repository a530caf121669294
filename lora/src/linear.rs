//! A frozen linear layer with its optional adapter: the one place where `x·Wᵀ` meets `B·A`.
//!
//! `y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ`; backward `dx = dy·W + s·(dy·B)·A`, `dB = s·dyᵀ·(x·Aᵀ)`, `dA = s·(dy·B)ᵀ·x`; nothing for W
//! (LoRA, arXiv:2106.09685). The adapter's product is summed in the same registers as the base's, so no result is
//! read again to add to it.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use crate::ops::product::{Left, Packed, Product, Right, run};
use crate::ops::{OpError, Scope, View, matrix, view};
use crate::params::{AdapterView, LoraWeights};

const OP: &str = "linear";

/// A linear layer of the base. Its weight is kept twice, in the layouts that the forward and the backward pass read.
#[derive(Debug)]
pub(crate) struct FrozenLinear {
    /// Full name, e.g. `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Width of its input.
    pub in_features: usize,
    /// Width of its output.
    pub out_features: usize,
    /// Wᵀ, `[in, out]`.
    forward: Packed,
    /// W, `[out, in]`.
    backward: Packed,
    bias: Option<Vec<f32>>,
}

impl FrozenLinear {
    /// A layer of a row-major weight `[out, in]` and an optional bias of length `out`.
    pub fn new(name: String, weight: &[f32], out_features: usize, bias: Option<Vec<f32>>) -> Self {
        let in_features = weight.len() / out_features.max(1);
        Self {
            name,
            in_features,
            out_features,
            forward: Packed::transposed(weight, out_features, in_features),
            backward: Packed::rows(weight, out_features, in_features),
            bias,
        }
    }

    /// The weight in the layout of the backward pass: rows can be read from it.
    pub fn rows(&self) -> &Packed {
        &self.backward
    }

    /// `out[m, rows] = x·Wᵀ`, without an adapter, into a slice.
    pub fn project(&self, x: &[f32], out: &mut [f32], scope: Scope) {
        let m = x.len() / self.in_features;
        let product = Product::new(out, m, self.out_features);
        run([self.base_terms(product, x)], scope.flops);
    }

    /// `out[m, in] = dy·W`, without an adapter, into a slice.
    pub fn project_back(&self, dy: &[f32], out: &mut [f32], scope: Scope) {
        let m = dy.len() / self.out_features;
        let product = Product::new(out, m, self.in_features);
        let w = Right::Packed(&self.backward);
        run([product.term(Left::rows(dy, self.out_features), w, self.out_features)], scope.flops);
    }

    fn base_terms<'a>(&'a self, product: Product<'a>, x: &'a [f32]) -> Product<'a> {
        let k = self.in_features;
        let product = product.term(Left::rows(x, k), Right::Packed(&self.forward), k);
        match &self.bias {
            // A column of ones times the bias.
            Some(bias) => {
                product.term(Left::constant(&ONE), Right::Rows { data: bias, stride: self.out_features }, 1)
            }
            None => product,
        }
    }
}

static ONE: [f32; 1] = [1.0];

/// The adapter of one layer, and its factors transposed, as the forward pass reads them.
#[derive(Debug)]
pub(crate) struct Factors<'a> {
    a: &'a [f32],
    b: &'a [f32],
    a_transposed: Vec<f32>,
    b_transposed: Vec<f32>,
    rank: usize,
    scale: f32,
    a_place: Range<usize>,
    b_place: Range<usize>,
}

impl<'a> Factors<'a> {
    /// The adapters of all layers; checked to fit them by [`Factors::check`].
    pub fn prepare<'l>(
        layers: impl Iterator<Item = &'l FrozenLinear>,
        adapter: Option<&AdapterView<'a>>,
        scope: Scope,
    ) -> Vec<Option<Self>> {
        let layers: Vec<_> = layers.map(|layer| adapter.and_then(|view| view.get(&layer.name))).collect();
        layers.into_par_iter().map(|weights| weights.map(|weights| Self::of(weights, scope))).collect()
    }

    fn of(LoraWeights { a, b, module, .. }: LoraWeights<'a>, scope: Scope) -> Self {
        let mut a_transposed = scope.pool.take(a.len());
        let mut b_transposed = scope.pool.take(b.len());
        transpose(a, module.in_features, &mut a_transposed);
        transpose(b, module.rank, &mut b_transposed);
        Self {
            a,
            b,
            a_transposed,
            b_transposed,
            rank: module.rank,
            scale: module.scale,
            a_place: module.a.clone(),
            b_place: module.b.clone(),
        }
    }

    /// Gives the buffers back.
    pub fn recycle(self, scope: Scope) {
        scope.pool.put(self.a_transposed);
        scope.pool.put(self.b_transposed);
    }
}

fn transpose(x: &[f32], columns: usize, out: &mut [f32]) {
    let rows = x.len() / columns.max(1);
    for (i, row) in x.chunks_exact(columns).enumerate() {
        for (j, &value) in row.iter().enumerate() {
            out[j * rows + i] = value;
        }
    }
}

/// A layer with its adapter in this pass.
pub(crate) type Adapted<'l, 'a> = (&'l FrozenLinear, Option<&'l Factors<'a>>);

/// What the forward pass gives for one layer.
pub(crate) struct Output {
    /// The result `[T, out]`.
    pub y: Tensor,
    /// `s·x·Aᵀ` `[T, R]`, which the backward pass needs.
    pub low: Option<Tensor>,
}

/// Forward of layers that share the input `x` `[T, in]`, side by side; `plus` is added to each result.
pub(crate) fn forward(
    x: &Tensor,
    layers: &[Adapted],
    plus: Option<&Tensor>,
    scope: Scope,
) -> Result<Vec<Output>, OpError> {
    let x = view(OP, x)?;
    let plus = plus.map(|t| view(OP, t)).transpose()?;
    let take = |columns: usize, in_features: usize| scope.pool.take(x.len() / in_features * columns);
    let mut lows: Vec<_> =
        layers.iter().map(|(layer, f)| f.map(|f| take(f.rank, layer.in_features))).collect();
    let mut results: Vec<_> =
        layers.iter().map(|(layer, _)| take(layer.out_features, layer.in_features)).collect();
    run(
        layers.iter().zip(&mut lows).filter_map(|((layer, factors), low)| {
            let (k, factors, low) = (layer.in_features, (*factors)?, low.as_mut()?);
            let a = Right::Rows { data: &factors.a_transposed, stride: factors.rank };
            let product = Product::new(low, x.len() / k, factors.rank).term(Left::rows(&x, k), a, k);
            Some(product.scaled(factors.scale))
        }),
        scope.flops,
    );
    run(
        layers.iter().zip(&lows).zip(&mut results).map(|(((layer, factors), low), y)| {
            let product = Product::new(y, x.len() / layer.in_features, layer.out_features);
            let mut product = layer.base_terms(product, &x);
            if let (Some(factors), Some(low)) = (factors, low) {
                let b = Right::Rows { data: &factors.b_transposed, stride: layer.out_features };
                product = product.term(Left::rows(low, factors.rank), b, factors.rank);
            }
            match &plus {
                Some(plus) => product.plus(plus),
                None => product,
            }
        }),
        scope.flops,
    );
    let parts = layers.iter().zip(results).zip(lows);
    parts
        .map(|(((layer, factors), y), low)| {
            let low = low.zip(*factors).map(|(low, f)| matrix(low, f.rank)).transpose()?;
            Ok(Output { y: matrix(y, layer.out_features)?, low })
        })
        .collect()
}

/// One layer on the way back.
pub(crate) struct Upstream<'l, 'a> {
    /// The layer with its adapter.
    pub layer: Adapted<'l, 'a>,
    /// Gradient of its result `[T, out]`.
    pub dy: &'l Tensor,
    /// What the forward pass kept.
    pub low: Option<&'l Tensor>,
}

/// What one region of the backward pass leaves for the next: `s·dy·B` `[T, R]` of each adapted layer.
pub(crate) type Reduced = Vec<Option<Vec<f32>>>;

/// Gradient of the input that the layers share, summed over them, if it is wanted.
///
/// The second result is what [`backward_weights`] needs.
pub(crate) fn backward_input(
    layers: &[Upstream],
    wanted: bool,
    scope: Scope,
) -> Result<(Option<Tensor>, Reduced), OpError> {
    let dys = views(layers)?;
    let mut reduced: Reduced = layers
        .iter()
        .zip(&dys)
        .map(|(l, dy)| l.layer.1.map(|f| scope.pool.take(dy.len() / l.layer.0.out_features * f.rank)))
        .collect();
    run(
        layers.iter().zip(&dys).zip(&mut reduced).filter_map(|((l, dy), v)| {
            let (layer, factors) = l.layer;
            let (factors, v, k) = (factors?, v.as_mut()?, layer.out_features);
            let b = Right::Rows { data: factors.b, stride: factors.rank };
            let product = Product::new(v, dy.len() / k, factors.rank).term(Left::rows(dy, k), b, k);
            Some(product.scaled(factors.scale))
        }),
        scope.flops,
    );
    if !wanted || layers.is_empty() {
        return Ok((None, reduced));
    }
    let in_features = layers[0].layer.0.in_features;
    let tokens = dys[0].len() / layers[0].layer.0.out_features;
    let mut dx = scope.pool.take(tokens * in_features);
    let mut product = Product::new(&mut dx, tokens, in_features);
    for ((l, dy), v) in layers.iter().zip(&dys).zip(&reduced) {
        let (layer, factors) = l.layer;
        let k = layer.out_features;
        product = product.term(Left::rows(dy, k), Right::Packed(&layer.backward), k);
        if let (Some(factors), Some(v)) = (factors, v) {
            let a = Right::Rows { data: factors.a, stride: in_features };
            product = product.term(Left::rows(v, factors.rank), a, factors.rank);
        }
    }
    run([product], scope.flops);
    Ok((Some(matrix(dx, in_features)?), reduced))
}

/// Gradients of the layers' adapters, written to their places in `gradients`. `x` is the input that they share.
pub(crate) fn backward_weights(
    layers: &[Upstream],
    reduced: Reduced,
    x: &Tensor,
    gradients: &mut [f32],
    scope: Scope,
) -> Result<(), OpError> {
    let (x, dys) = (view(OP, x)?, views(layers)?);
    let lows =
        layers.iter().map(|l| l.low.map(|t| view(OP, t)).transpose()).collect::<Result<Vec<_>, _>>()?;
    let places: Vec<_> = layers
        .iter()
        .filter_map(|l| l.layer.1)
        .flat_map(|f| [f.a_place.clone(), f.b_place.clone()])
        .collect();
    let mut destinations = carve(gradients, &places).into_iter();
    let mut products = Vec::with_capacity(places.len());
    for (((l, dy), low), v) in layers.iter().zip(&dys).zip(&lows).zip(&reduced) {
        let ((layer, Some(factors)), Some(v), Some(low)) = (l.layer, v, low) else { continue };
        let (Some(da), Some(db)) = (destinations.next(), destinations.next()) else { continue };
        let (rank, tokens) = (factors.rank, v.len() / factors.rank);
        let input = Right::Rows { data: &x, stride: layer.in_features };
        products.push(Product::new(da, rank, layer.in_features).term(
            Left::transposed(v, rank),
            input,
            tokens,
        ));
        let dy = Right::Rows { data: dy, stride: layer.out_features };
        products.push(Product::transposed(db, rank, layer.out_features).term(
            Left::transposed(low, rank),
            dy,
            tokens,
        ));
    }
    run(products, scope.flops);
    reduced.into_iter().flatten().for_each(|v| scope.pool.put(v));
    Ok(())
}

fn views<'v>(layers: &'v [Upstream]) -> Result<Vec<View<'v>>, OpError> {
    layers.iter().map(|l| view(OP, l.dy)).collect()
}

/// Disjoint parts of a buffer, in the order in which they are asked for.
fn carve<'g>(buffer: &'g mut [f32], places: &[Range<usize>]) -> Vec<&'g mut [f32]> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flops::FlopCounter;
    use crate::ops::pool::Pool;
    use crate::ops::tests::{check_gradient, noise, same_on_threads};
    use crate::params::Layout;

    const TOKENS: usize = 90;
    const IN: usize = 70;
    const SCALE: f32 = 1.5;

    /// Three layers on one input: with a bias and an adapter, with an adapter, with neither.
    struct Fixture {
        layers: [FrozenLinear; 3],
        weights: [Vec<f32>; 3],
        bias: Vec<f32>,
        layout: Layout,
        x: Vec<f32>,
        adapter: Vec<f32>,
        dys: [Vec<f32>; 3],
    }

    const OUT: [usize; 3] = [80, 33, 6];
    const RANKS: [usize; 2] = [5, 16];

    fn fixture() -> Fixture {
        let weights = [0, 1, 2].map(|i| noise(OUT[i] * IN, i as u64));
        let bias = noise(OUT[0], 3);
        let layer =
            |i: usize| FrozenLinear::new(i.to_string(), &weights[i], OUT[i], (i == 0).then(|| bias.clone()));
        let layers = [layer(0), layer(1), layer(2)];
        let mut layout = Layout::new();
        // Not in the layers' order: places are looked up by name.
        layout.push("1", IN, OUT[1], RANKS[1], SCALE);
        layout.push("0", IN, OUT[0], RANKS[0], SCALE);
        let adapter = noise(layout.len(), 4);
        let dys = [0, 1, 2].map(|i| noise(TOKENS * OUT[i], 5 + i as u64));
        Fixture { layers, weights, bias, layout, x: noise(TOKENS * IN, 8), adapter, dys }
    }

    impl Fixture {
        /// All results, by the formula, in f64.
        fn plain(&self, x: &[f32], adapter: &[f32]) -> Vec<f32> {
            let view = AdapterView::new(&self.layout, adapter);
            let mut all = Vec::new();
            for (i, w) in self.weights.iter().enumerate() {
                let lora = view.get(&i.to_string());
                for x in x.chunks_exact(IN) {
                    let dot =
                        |w: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
                    let low: Vec<f64> = lora.iter().flat_map(|l| l.a.chunks_exact(IN).map(dot)).collect();
                    for (o, w) in w.chunks_exact(IN).enumerate() {
                        let b = lora.iter().flat_map(|l| &l.b[o * low.len()..(o + 1) * low.len()]);
                        let adapted: f64 = b.zip(&low).map(|(b, low)| f64::from(*b) * low).sum();
                        let bias = if i == 0 { f64::from(self.bias[o]) } else { 0.0 };
                        all.push((dot(w) + f64::from(SCALE) * adapted + bias) as f32);
                    }
                }
            }
            all
        }

        fn loss(&self, x: &[f32], adapter: &[f32]) -> f64 {
            let dys = self.dys.iter().flatten();
            self.plain(x, adapter).iter().zip(dys).map(|(y, dy)| f64::from(*y) * f64::from(*dy)).sum()
        }

        /// Results, then the input's gradient, then the adapter's.
        fn by_hand(&self) -> [Vec<f32>; 3] {
            let (pool, flops) = (Pool::default(), FlopCounter::new());
            let scope = Scope { pool: &pool, flops: &flops };
            let view = AdapterView::new(&self.layout, &self.adapter);
            let factors = Factors::prepare(self.layers.iter(), Some(&view), scope);
            let adapted: Vec<Adapted> = self.layers.iter().zip(factors.iter().map(Option::as_ref)).collect();
            let x = matrix(self.x.clone(), IN).unwrap();
            let outputs = forward(&x, &adapted, None, scope).unwrap();
            let dys = [0, 1, 2].map(|i| matrix(self.dys[i].clone(), OUT[i]).unwrap());
            let upstream: Vec<Upstream> = adapted
                .iter()
                .zip(&dys)
                .zip(&outputs)
                .map(|((layer, dy), out)| Upstream { layer: *layer, dy, low: out.low.as_ref() })
                .collect();
            let (dx, reduced) = backward_input(&upstream, true, scope).unwrap();
            let mut gradients = vec![f32::NAN; self.layout.len()];
            backward_weights(&upstream, reduced, &x, &mut gradients, scope).unwrap();
            let y = outputs.iter().flat_map(|o| view_of(&o.y)).collect();
            [y, view_of(&dx.unwrap()), gradients]
        }
    }

    fn view_of(t: &Tensor) -> Vec<f32> {
        view("test", t).unwrap().to_vec()
    }

    #[test]
    fn results_and_gradients_follow_the_formula() {
        let fixture = fixture();
        let [y, dx, gradients] = fixture.by_hand();
        for (i, (y, plain)) in y.iter().zip(fixture.plain(&fixture.x, &fixture.adapter)).enumerate() {
            assert!((y - plain).abs() < 1e-4 * (1.0 + plain.abs()), "[{i}]: {y} and {plain}");
        }
        check_gradient("x", &fixture.x, &dx, |x| fixture.loss(x, &fixture.adapter));
        check_gradient("adapter", &fixture.adapter, &gradients, |adapter| fixture.loss(&fixture.x, adapter));
        let bits = same_on_threads(|| fixture.by_hand().concat());
        assert_eq!(bits, [y, dx, gradients].concat());
    }

    #[test]
    fn parts_are_carved_in_the_order_asked_for() {
        let mut buffer: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let parts = carve(&mut buffer, &[6..9, 0..2, 2..3]);
        assert_eq!(parts, [&[6.0, 7.0, 8.0][..], &[0.0, 1.0], &[2.0]]);
    }
}
