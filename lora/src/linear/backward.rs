//! The backward pass of layers that share an input: its gradient first, then those of what is trained.

use std::ops::Range;

use candle_core::Tensor;

use super::factors::{Form, Low, Whole};
use super::forward::{Kept, KeptSegment};
use super::rows::Segment;
use super::{Adapted, FrozenLinear, ONE, OP, Rows, carve};
use crate::ops::product::{Left, Product, Right, run};
use crate::ops::{OpError, Scope, View, matrix, view};

/// One layer on the way back.
pub(crate) struct Upstream<'l, 'a> {
    /// The layer with what is trained of it.
    pub layer: Adapted<'l, 'a>,
    /// Gradient of its result `[T, out]`.
    pub dy: &'l Tensor,
    /// What the forward pass kept.
    pub kept: &'l Kept,
}

/// What becomes of what a gradient's place held before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Into {
    /// It is overwritten.
    Overwrite,
    /// It is added to: the output head's chunks of tokens are parts of one sum.
    Add,
}

/// What [`backward_input`] leaves for [`backward_weights`]: layer after layer, its segments in order.
pub(crate) struct Reduced(Vec<ReducedSegment>);

#[derive(Default)]
struct ReducedSegment {
    /// `s·d·B` `[rows, R]`, where d is the gradient of what the magnitude scales, or of the result.
    v: Vec<f32>,
    /// d, where there is a magnitude.
    scaled: Vec<f32>,
}

/// One layer's part in the gradient of the input, on one segment.
struct Job<'j, 'a> {
    layer: &'j FrozenLinear,
    form: Option<&'j Form<'a>>,
    rows: usize,
    /// Gradient of the result.
    dy: &'j [f32],
    reduced: ReducedSegment,
    /// DoRA with dropout: `d − dy`, whose product with W is dropped.
    masked: Vec<f32>,
    /// `−s·d·B₀` of what is not dropped.
    start: Vec<f32>,
    /// The same of what is dropped.
    masked_start: Vec<f32>,
    /// The part of the input's gradient that is dropped.
    input: Vec<f32>,
}

/// Gradient of the input that the layers share, summed over them, if it is wanted.
///
/// `rows` is the forward pass's. The second result is what [`backward_weights`] needs.
pub(crate) fn backward_input(
    layers: &[Upstream],
    wanted: bool,
    rows: &Rows,
    scope: Scope,
) -> Result<(Option<Tensor>, Reduced), OpError> {
    let dys = views(layers)?;
    let Some((first, dy)) = layers.first().zip(dys.first()) else {
        return Ok((None, Reduced(Vec::new())));
    };
    let (in_features, tokens) = (first.layer.0.in_features, dy.len() / first.layer.0.out_features);
    let segments = rows.segments(tokens);
    let mut jobs: Vec<Job> = layers
        .iter()
        .zip(&dys)
        .flat_map(|(l, dy)| segments.iter().map(|segment| Job::new(l.layer, segment, dy, wanted, scope)))
        .collect();
    run(jobs.iter_mut().flat_map(|job| job.narrow(wanted)), scope.flops);
    if !wanted {
        return Ok((None, Reduced(jobs.into_iter().map(|job| job.finish(scope)).collect())));
    }
    run(jobs.iter_mut().filter_map(Job::masked_product), scope.flops);
    for (job, segment) in jobs.iter_mut().zip(segments.iter().cycle()) {
        job.mask(segment, rows);
    }
    let mut extra: Vec<Vec<f32>> = (0..segments.len()).map(|i| sum_masked(&mut jobs, i, &segments)).collect();
    let mut dx = scope.pool.take(tokens * in_features);
    let mut rest = dx.as_mut_slice();
    run(
        segments.iter().enumerate().map(|(i, segment)| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(segment.rows.len() * in_features);
            rest = tail;
            let product = Product::new(part, segment.rows.len(), in_features);
            let product = if extra[i].is_empty() { product } else { product.plus(&extra[i]) };
            jobs[i..].iter().step_by(segments.len()).fold(product, |product, job| job.plain_terms(product))
        }),
        scope.flops,
    );
    extra.drain(..).for_each(|buffer| scope.pool.put(buffer));
    let reduced = jobs.into_iter().map(|job| job.finish(scope)).collect();
    Ok((Some(matrix(dx, in_features)?), Reduced(reduced)))
}

/// The dropped parts of one segment's gradient, summed over the layers; empty where nothing is dropped.
fn sum_masked(jobs: &mut [Job], segment: usize, segments: &[Segment]) -> Vec<f32> {
    let mut sum: Vec<f32> = Vec::new();
    for job in jobs[segment..].iter_mut().step_by(segments.len()) {
        if sum.is_empty() {
            sum = std::mem::take(&mut job.input);
        } else {
            sum.iter_mut().zip(&job.input).for_each(|(sum, x)| *sum += x);
        }
    }
    sum
}

impl<'j, 'a> Job<'j, 'a> {
    fn new(
        (layer, factors): Adapted<'j, 'a>,
        segment: &Segment,
        dy: &'j [f32],
        wanted: bool,
        scope: Scope,
    ) -> Self {
        let out = layer.out_features;
        let rows = segment.rows.len();
        let mut job = Self {
            layer,
            form: factors.and_then(|factors| factors.form(segment.adapter)),
            rows,
            dy: &dy[segment.rows.start * out..segment.rows.end * out],
            reduced: ReducedSegment::default(),
            masked: Vec::new(),
            start: Vec::new(),
            masked_start: Vec::new(),
            input: Vec::new(),
        };
        let low = match job.form {
            Some(Form::Low(low)) => low,
            Some(Form::Whole(_)) | None => return job,
        };
        job.reduced.v = scope.pool.take(rows * low.rank);
        if let Some(magnitude) = &low.magnitude {
            job.reduced.scaled = scope.pool.take(rows * out);
            magnitude.unscale(job.dy, &mut job.reduced.scaled);
        }
        if wanted && low.start.is_some() {
            job.start = scope.pool.take(rows * low.rank);
        }
        if wanted && low.mask.is_some() {
            job.input = scope.pool.take(rows * layer.in_features);
            if low.magnitude.is_some() {
                job.masked = scope.pool.take(rows * out);
                let parts = job.reduced.scaled.iter().zip(job.dy);
                job.masked.iter_mut().zip(parts).for_each(|(masked, (d, dy))| *masked = d - dy);
                if low.start.is_some() {
                    job.masked_start = scope.pool.take(rows * low.rank);
                }
            }
        }
        job
    }

    fn low(&self) -> Option<&'j Low<'a>> {
        match self.form? {
            Form::Low(low) => Some(low),
            Form::Whole(_) => None,
        }
    }

    /// The products down to the rank.
    fn narrow(&mut self, wanted: bool) -> Vec<Product<'_>> {
        let Some(low) = self.low() else { return Vec::new() };
        let (k, rows) = (self.layer.out_features, self.rows);
        let d = if low.magnitude.is_some() { &self.reduced.scaled } else { self.dy };
        let down = |out, d, b, scale| {
            let b = Right::Rows { data: b, stride: low.rank };
            Product::new(out, rows, low.rank).term(Left::rows(d, k), b, k).scaled(scale)
        };
        let mut products = vec![down(&mut self.reduced.v, d, low.b, low.scale)];
        if let Some(start) = low.start.as_ref().filter(|_| wanted) {
            let plain = if low.mask.is_some() { self.dy } else { d };
            products.push(down(&mut self.start, plain, start.b, -low.scale));
            if !self.masked_start.is_empty() {
                products.push(down(&mut self.masked_start, &self.masked, start.b, -low.scale));
            }
        }
        products
    }

    /// What goes back through the dropped input: `v·A`, and under a magnitude `(d − dy)·W`.
    fn masked_product(&mut self) -> Option<Product<'_>> {
        let low = self.low()?;
        low.mask.as_ref()?;
        let n = self.layer.in_features;
        let up = |v, a| (Left::rows(v, low.rank), Right::Rows { data: a, stride: n });
        let mut product = Product::new(&mut self.input, self.rows, n);
        if low.magnitude.is_some() {
            product = self.layer.back_term(product, &self.masked);
            if let Some(start) = &low.start {
                let (left, right) = up(&self.masked_start, start.a);
                product = product.term(left, right, low.rank);
            }
        }
        let (left, right) = up(&self.reduced.v, low.a);
        Some(product.term(left, right, low.rank))
    }

    fn mask(&mut self, segment: &Segment, rows: &Rows) {
        if let Some(mask) = self.low().and_then(|low| low.mask.as_ref()) {
            mask.apply_in_place(&mut self.input, self.layer.in_features, rows.keys(&segment.rows));
        }
    }

    /// Adds what goes back through the whole input.
    fn plain_terms<'p>(&'p self, product: Product<'p>) -> Product<'p> {
        let layer = self.layer;
        let low = match self.form {
            Some(Form::Low(low)) => low,
            Some(Form::Whole(whole)) => {
                return whole.backward_term(layer, product, self.dy);
            }
            None => return layer.back_term(product, self.dy),
        };
        let n = layer.in_features;
        let scaled = low.magnitude.is_some() && low.mask.is_none();
        let d = if scaled { &self.reduced.scaled } else { self.dy };
        let mut product = layer.back_term(product, d);
        if let Some(start) = &low.start {
            let a = Right::Rows { data: start.a, stride: n };
            product = product.term(Left::rows(&self.start, low.rank), a, low.rank);
        }
        if low.mask.is_some() {
            return product;
        }
        product.term(Left::rows(&self.reduced.v, low.rank), Right::Rows { data: low.a, stride: n }, low.rank)
    }

    fn finish(self, scope: Scope) -> ReducedSegment {
        for buffer in [self.masked, self.start, self.masked_start, self.input] {
            scope.pool.put(buffer);
        }
        self.reduced
    }
}

impl Whole<'_> {
    fn backward_term<'p>(&'p self, layer: &FrozenLinear, product: Product<'p>, dy: &'p [f32]) -> Product<'p> {
        let k = layer.out_features;
        let weight = if layer.conv1d {
            Right::Columns { data: self.weight, stride: k }
        } else {
            Right::Rows { data: self.weight, stride: layer.in_features }
        };
        product.term(Left::rows(dy, k), weight, k)
    }
}

/// What is needed for the gradients of one layer's trained tensors, on one segment.
struct Sources<'s, 'a> {
    layer: &'s FrozenLinear,
    form: &'s Form<'a>,
    rows: Range<usize>,
    /// The input that the trained tensors see.
    x: &'s [f32],
    dy: &'s [f32],
    kept: &'s KeptSegment,
    reduced: &'s ReducedSegment,
}

/// Gradients of what is trained of the layers, written or added to their places in `gradients`. `x` is the input that
/// they share, `rows` the forward pass's.
pub(crate) fn backward_weights(
    layers: &[Upstream],
    reduced: Reduced,
    x: &Tensor,
    gradients: &mut [f32],
    into: Into,
    rows: &Rows,
    scope: Scope,
) -> Result<(), OpError> {
    let (x, dys) = (view(OP, x)?, views(layers)?);
    let Some(first) = layers.first() else { return Ok(()) };
    let in_features = first.layer.0.in_features;
    let segments = rows.segments(x.len() / in_features);
    let mut sources = Vec::new();
    let mut dropped = Vec::new();
    for (i, (l, dy)) in layers.iter().zip(&dys).enumerate() {
        let (layer, Some(factors)) = l.layer else { continue };
        for (j, segment) in segments.iter().enumerate() {
            let Some(form) = factors.form(segment.adapter) else { continue };
            let part = &x[segment.rows.start * in_features..segment.rows.end * in_features];
            dropped.push(form.dropped(part, in_features, &segment.rows, rows, scope));
            let (out, rows) = (layer.out_features, segment.rows.clone());
            sources.push(Sources {
                layer,
                form,
                x: part,
                dy: &dy[rows.start * out..rows.end * out],
                rows,
                kept: &l.kept.segments[j],
                reduced: &reduced.0[i * segments.len() + j],
            });
        }
    }
    for (source, dropped) in sources.iter_mut().zip(&dropped) {
        source.x = if dropped.is_empty() { source.x } else { dropped };
    }
    let places: Vec<_> = sources.iter().flat_map(|source| source.form.places()).collect();
    let mut destinations = carve(gradients, &places).into_iter();
    let add = into == Into::Add;
    let mut products = Vec::with_capacity(places.len());
    for source in &sources {
        source.gradients(&mut destinations, add, &mut products);
    }
    run(products, scope.flops);
    let finished = reduced.0.into_iter().flat_map(|r| [r.v, r.scaled]);
    finished.chain(dropped).for_each(|buffer| scope.pool.put(buffer));
    Ok(())
}

impl Form<'_> {
    /// Places of the gradients, in the order in which [`Sources::gradients`] takes them.
    fn places(&self) -> Vec<Range<usize>> {
        match self {
            Form::Low(low) => {
                let magnitude = low.magnitude.as_ref().map(|magnitude| magnitude.place.clone());
                [low.a_place.clone(), low.b_place.clone()].into_iter().chain(magnitude).collect()
            }
            Form::Whole(whole) => {
                let bias = whole.bias.as_ref().map(|(_, place)| place.clone());
                std::iter::once(whole.place.clone()).chain(bias).collect()
            }
        }
    }

    /// The adapter's input, where some of it is dropped; empty where it is the layer's.
    fn dropped(
        &self,
        x: &[f32],
        columns: usize,
        segment: &Range<usize>,
        rows: &Rows,
        scope: Scope,
    ) -> Vec<f32> {
        let Form::Low(low) = self else { return Vec::new() };
        let Some(mask) = &low.mask else { return Vec::new() };
        let mut dropped = scope.pool.take(x.len());
        mask.apply(x, columns, rows.keys(segment), &mut dropped);
        dropped
    }
}

impl<'s> Sources<'s, '_> {
    /// Takes its destinations, in the order of [`Form::places`]: the magnitude's gradient is made at once, the others
    /// are products to be run.
    fn gradients<'g>(
        &self,
        destinations: &mut impl Iterator<Item = &'g mut [f32]>,
        add: bool,
        products: &mut Vec<Product<'g>>,
    ) where
        's: 'g,
    {
        let (inputs, outputs, tokens) = (self.layer.in_features, self.layer.out_features, self.rows.len());
        let mut next = || destinations.next().expect("a destination for each place");
        let x = Right::Rows { data: self.x, stride: inputs };
        match self.form {
            Form::Low(low) => {
                let (v, rank) = (&self.reduced.v, low.rank);
                let d = if low.magnitude.is_some() { &self.reduced.scaled } else { self.dy };
                let d = Right::Rows { data: d, stride: outputs };
                let da = Product::new(next(), rank, inputs).accumulated(add);
                products.push(da.term(Left::transposed(v, rank), x, tokens));
                let db = Product::transposed(next(), rank, outputs).accumulated(add);
                products.push(db.term(Left::transposed(&self.kept.low, rank), d, tokens));
                if let Some(magnitude) = &low.magnitude {
                    magnitude.gradient(self.dy, &self.kept.product, next(), add);
                }
            }
            Form::Whole(whole) => {
                let dy = Right::Rows { data: self.dy, stride: outputs };
                let dw = next();
                products.push(if self.layer.conv1d {
                    let left = Left::transposed(self.x, inputs);
                    Product::new(dw, inputs, outputs).accumulated(add).term(left, dy, tokens)
                } else {
                    let left = Left::transposed(self.dy, outputs);
                    Product::new(dw, outputs, inputs).accumulated(add).term(left, x, tokens)
                });
                if whole.bias.is_some() {
                    let db = Product::new(next(), 1, outputs).accumulated(add);
                    products.push(db.term(Left::constant(&ONE), dy, tokens));
                }
            }
        }
    }
}

fn views<'v>(layers: &'v [Upstream]) -> Result<Vec<View<'v>>, OpError> {
    layers.iter().map(|l| view(OP, l.dy)).collect()
}
