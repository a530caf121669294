//! The forward pass of layers that share an input.

use candle_core::Tensor;

use super::factors::{Form, Low, Whole};
use super::rows::Segment;
use super::{Adapted, FrozenLinear, OP, Rows};
use crate::ops::product::{Left, Product, Right, run};
use crate::ops::{OpError, Scope, matrix, view};

/// What the forward pass gives for one layer.
pub(crate) struct Output {
    /// The result `[T, out]`.
    pub y: Tensor,
    /// What the backward pass needs.
    pub kept: Kept,
}

/// What the backward pass of one layer needs of the forward pass, for each segment of the rows.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(super) segments: Vec<KeptSegment>,
}

#[derive(Debug, Default)]
pub(super) struct KeptSegment {
    /// `s·x·Aᵀ` `[rows, R]`.
    pub low: Vec<f32>,
    /// What DoRA's magnitude scales, `[rows, out]`.
    pub product: Vec<f32>,
}

impl Kept {
    /// Gives the buffers back.
    pub fn recycle(self, scope: Scope) {
        for KeptSegment { low, product } in self.segments {
            scope.pool.put(low);
            scope.pool.put(product);
        }
    }
}

/// One layer's work on one segment of the rows, and the buffers that it makes.
struct Job<'j, 'a> {
    layer: &'j FrozenLinear,
    form: Option<&'j Form<'a>>,
    /// The rows of the input.
    x: &'j [f32],
    /// The adapter's input, where some of it is dropped.
    dropped: Vec<f32>,
    /// What was dropped of it, where DoRA's magnitude must not scale it.
    rest: Vec<f32>,
    kept: KeptSegment,
    /// `s·x·A₀ᵀ`.
    start: Vec<f32>,
    /// The same of what was dropped.
    rest_start: Vec<f32>,
}

/// Forward of layers that share the input `x` `[T, in]`, side by side; `plus` is added to each result.
///
/// `rows` says whose each row of `x` is.
pub(crate) fn forward(
    x: &Tensor,
    layers: &[Adapted],
    plus: Option<&Tensor>,
    rows: &Rows,
    scope: Scope,
) -> Result<Vec<Output>, OpError> {
    let x = view(OP, x)?;
    let plus = plus.map(|t| view(OP, t)).transpose()?;
    let Some(in_features) = layers.first().map(|(layer, _)| layer.in_features) else {
        return Ok(Vec::new());
    };
    let tokens = x.len() / in_features;
    let segments = rows.segments(tokens);
    let mut results: Vec<_> =
        layers.iter().map(|(layer, _)| scope.pool.take(tokens * layer.out_features)).collect();
    // Layer after layer, its segments in order.
    let mut jobs: Vec<Job> = layers
        .iter()
        .flat_map(|layer| segments.iter().map(|segment| Job::new(*layer, segment, &x, rows, scope)))
        .collect();
    run(jobs.iter_mut().flat_map(Job::narrow), scope.flops);
    let mut places = split(&mut results, layers, &segments);
    run(
        jobs.iter_mut().zip(&mut places).zip(segments.iter().cycle()).flat_map(|((job, y), segment)| {
            let out = job.layer.out_features;
            let plus = plus.as_deref().map(|p| &p[segment.rows.start * out..segment.rows.end * out]);
            job.wide(y, plus)
        }),
        scope.flops,
    );
    for ((job, y), segment) in jobs.iter().zip(&mut places).zip(segments.iter().cycle()) {
        let out = job.layer.out_features;
        let plus = plus.as_deref().map(|p| &p[segment.rows.start * out..segment.rows.end * out]);
        job.scale(y, plus);
    }
    let mut kept = jobs.into_iter().map(|job| job.finish(scope));
    let outputs = results.into_iter().zip(layers).map(|(y, (layer, _))| {
        let kept = Kept { segments: kept.by_ref().take(segments.len()).collect() };
        Ok(Output { y: matrix(y, layer.out_features)?, kept })
    });
    outputs.collect()
}

/// The rows of each segment of each result.
fn split<'r>(results: &'r mut [Vec<f32>], layers: &[Adapted], segments: &[Segment]) -> Vec<&'r mut [f32]> {
    let mut parts = Vec::with_capacity(results.len() * segments.len());
    for (y, (layer, _)) in results.iter_mut().zip(layers) {
        let mut rest = y.as_mut_slice();
        for segment in segments {
            let (part, tail) = rest.split_at_mut(segment.rows.len() * layer.out_features);
            parts.push(part);
            rest = tail;
        }
    }
    parts
}

impl<'j, 'a> Job<'j, 'a> {
    fn new(
        (layer, factors): Adapted<'j, 'a>,
        segment: &Segment,
        x: &'j [f32],
        rows: &Rows,
        scope: Scope,
    ) -> Self {
        let k = layer.in_features;
        let x = &x[segment.rows.start * k..segment.rows.end * k];
        let form = factors.and_then(|factors| factors.form(segment.adapter));
        let mut job = Self {
            layer,
            form,
            x,
            dropped: Vec::new(),
            rest: Vec::new(),
            kept: KeptSegment::default(),
            start: Vec::new(),
            rest_start: Vec::new(),
        };
        let low = match form {
            Some(Form::Low(low)) => low,
            Some(Form::Whole(_)) | None => return job,
        };
        let narrow = segment.rows.len() * low.rank;
        job.kept.low = scope.pool.take(narrow);
        if let Some(mask) = &low.mask {
            job.dropped = scope.pool.take(x.len());
            mask.apply(x, k, rows.keys(&segment.rows), &mut job.dropped);
        }
        if low.start.is_some() {
            job.start = scope.pool.take(narrow);
        }
        if low.magnitude.is_some() {
            job.kept.product = scope.pool.take(segment.rows.len() * layer.out_features);
            if low.mask.is_some() {
                job.rest = scope.pool.take(x.len());
                let parts = x.iter().zip(&job.dropped);
                job.rest.iter_mut().zip(parts).for_each(|(rest, (x, dropped))| *rest = x - dropped);
                if low.start.is_some() {
                    job.rest_start = scope.pool.take(narrow);
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
    fn narrow(&mut self) -> Vec<Product<'_>> {
        let Some(low) = self.low() else { return Vec::new() };
        let k = self.layer.in_features;
        let rows = self.x.len() / k;
        let adapted = if low.mask.is_some() { &self.dropped } else { self.x };
        let down = |out, x, a| {
            let a = Right::Rows { data: a, stride: low.rank };
            Product::new(out, rows, low.rank).term(Left::rows(x, k), a, k).scaled(low.scale)
        };
        let mut products = vec![down(&mut self.kept.low, adapted, &low.a_transposed)];
        if let Some(start) = &low.start {
            // The start is a part of the base, whose input is dropped only where the magnitude scales both.
            let input = if low.magnitude.is_some() { adapted } else { self.x };
            products.push(down(&mut self.start, input, &start.a_transposed));
            if !self.rest_start.is_empty() {
                products.push(down(&mut self.rest_start, &self.rest, &start.a_transposed));
            }
        }
        products
    }

    /// The products up to the result's width.
    fn wide<'p>(&'p mut self, y: &'p mut [f32], plus: Option<&'p [f32]>) -> Vec<Product<'p>> {
        let low = self.low();
        let (layer, out) = (self.layer, self.layer.out_features);
        let rows = self.x.len() / layer.in_features;
        let result = |y, plus: Option<&'p [f32]>| {
            let product = Product::new(y, rows, out);
            plus.into_iter().fold(product, Product::plus)
        };
        let Some(low) = low else {
            let product = match self.form {
                Some(Form::Whole(whole)) => whole.forward_terms(layer, result(y, plus), self.x),
                _ => layer.bias_term(layer.weight_term(result(y, plus), self.x), layer.bias.as_deref()),
            };
            return vec![product];
        };
        let up = |product: Product<'p>, low_x: &'p [f32], b: &'p [f32]| {
            product.term(Left::rows(low_x, low.rank), Right::Rows { data: b, stride: out }, low.rank)
        };
        let adapted =
            |product: Product<'p>, x: &'p [f32], lower: &'p [f32], start: &'p [f32]| -> Product<'p> {
                let product = up(layer.weight_term(product, x), lower, &low.b_transposed);
                match &low.start {
                    Some(s) => up(product, start, &s.b_negated),
                    None => product,
                }
            };
        if low.magnitude.is_none() {
            let product = layer.bias_term(result(y, plus), layer.bias.as_deref());
            return vec![adapted(product, self.x, &self.kept.low, &self.start)];
        }
        let x = if low.mask.is_some() { &self.dropped } else { self.x };
        let scaled = adapted(Product::new(&mut self.kept.product, rows, out), x, &self.kept.low, &self.start);
        let mut products = vec![scaled];
        if low.mask.is_some() {
            let product = layer.bias_term(result(y, plus), layer.bias.as_deref());
            let product = layer.weight_term(product, &self.rest);
            products.push(match &low.start {
                Some(s) => up(product, &self.rest_start, &s.b_negated),
                None => product,
            });
        }
        products
    }

    /// DoRA's last pass: `y = ratio ⊙ product`, and what is not scaled.
    fn scale(&self, y: &mut [f32], plus: Option<&[f32]>) {
        let Some(low) = self.low() else { return };
        let Some(magnitude) = &low.magnitude else { return };
        if low.mask.is_none() {
            let out = self.layer.out_features;
            match plus {
                Some(plus) => y.copy_from_slice(plus),
                None => y.fill(0.0),
            }
            if let Some(bias) = &self.layer.bias {
                y.chunks_exact_mut(out).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
            }
        }
        magnitude.scale(&self.kept.product, y, true);
    }

    fn finish(self, scope: Scope) -> KeptSegment {
        for buffer in [self.dropped, self.rest, self.start, self.rest_start] {
            scope.pool.put(buffer);
        }
        self.kept
    }
}

impl<'a> Whole<'a> {
    fn forward_terms<'p>(
        &'p self,
        layer: &'p FrozenLinear,
        product: Product<'p>,
        x: &'p [f32],
    ) -> Product<'p> {
        let k = layer.in_features;
        let weight = if layer.conv1d {
            Right::Rows { data: self.weight, stride: layer.out_features }
        } else {
            Right::Columns { data: self.weight, stride: k }
        };
        let bias = self.bias.as_ref().map(|(bias, _)| *bias).or(layer.bias.as_deref());
        layer.bias_term(product.term(Left::rows(x, k), weight, k), bias)
    }
}
