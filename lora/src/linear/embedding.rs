//! An embedding's adapter: a linear layer's, whose input is one-hot, so that `A` is read by columns.
//!
//! `y = W[token] + s·A[:, token]·Bᵀ`, and under DoRA the magnitude scales each column (PEFT's definition: the norms run
//! over the vocabulary). Its input is never dropped, and its start is zero, so nothing is subtracted.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use super::forward::{Kept, KeptSegment};
use super::magnitude::Magnitude;
use super::{OP, Rows, carve};
use crate::ops::embedding::Table;
use crate::ops::product::{Left, Product, Right, run, serial};
use crate::ops::{OpError, Scope, into_vec, matrix, view};
use crate::params::{AdapterView, LoraWeights};

/// What is trained of an embedding, by the adapters of the pass.
#[derive(Debug)]
pub(crate) struct EmbeddingFactors<'a> {
    forms: Vec<Option<Low<'a>>>,
    hidden: usize,
}

#[derive(Debug)]
struct Low<'a> {
    /// `[R, V]`.
    a: &'a [f32],
    /// `[H, R]`.
    b: &'a [f32],
    /// `[R, H]`.
    b_transposed: Vec<f32>,
    magnitude: Option<Magnitude>,
    rank: usize,
    vocabulary: usize,
    scale: f32,
    places: [Range<usize>; 2],
}

impl<'a> EmbeddingFactors<'a> {
    /// What each adapter of the pass trains of the embedding of that name; nothing where none does.
    pub fn prepare(name: &str, table: Table, adapters: &[AdapterView<'a>], scope: Scope) -> Option<Self> {
        let (mut first, mut hidden) = (0, 0);
        let mut forms = Vec::with_capacity(adapters.len());
        for view in adapters {
            let shift = |place: &Range<usize>| place.start + first..place.end + first;
            forms.push(view.get(name).map(|weights| {
                let module = weights.module;
                hidden = module.out_features;
                let mut low = Low::of(&weights, [shift(&module.a), shift(&module.b)]);
                if let (Some(magnitude), Some(place)) = (weights.magnitude, &module.magnitude) {
                    let norms = column_norms(table, &low, scope);
                    low.magnitude = Some(Magnitude::new(magnitude, norms, shift(place)));
                }
                low
            }));
            first += view.layout.len();
        }
        forms.iter().any(Option::is_some).then_some(Self { forms, hidden })
    }

    fn form(&self, adapter: Option<usize>) -> Option<&Low<'a>> {
        self.forms.get(adapter?)?.as_ref()
    }
}

impl<'a> Low<'a> {
    fn of(weights: &LoraWeights<'a>, places: [Range<usize>; 2]) -> Self {
        let (module, b) = (weights.module, weights.b);
        let (hidden, rank) = (module.out_features, module.rank);
        let b_transposed = (0..b.len()).map(|at| b[at % hidden * rank + at / hidden]).collect();
        Self {
            a: weights.a,
            b,
            b_transposed,
            magnitude: None,
            rank,
            vocabulary: module.in_features,
            scale: module.scale,
            places,
        }
    }

    /// `s·A[:, token]`.
    fn column(&self, token: usize, out: &mut [f32]) {
        for (r, out) in out.iter_mut().enumerate() {
            *out = self.scale * self.a[r * self.vocabulary + token];
        }
    }
}

/// Rows of the table whose squares are summed together; the sums of such blocks are added in order.
const BLOCK: usize = 256;

/// The norm of each column of `W + s·(B·A)ᵀ` over the vocabulary.
fn column_norms(table: Table, low: &Low, scope: Scope) -> Vec<f32> {
    let (hidden, rank) = (low.b.len() / low.rank, low.rank);
    scope.flops.product(low.vocabulary, hidden, rank + 1);
    let sums: Vec<Vec<f64>> = (0..low.vocabulary.div_ceil(BLOCK))
        .into_par_iter()
        .map(|block| {
            let tokens = block * BLOCK..((block + 1) * BLOCK).min(low.vocabulary);
            let (mut rows, mut columns) = (vec![0.0; tokens.len() * hidden], vec![0.0; tokens.len() * rank]);
            for (i, token) in tokens.clone().enumerate() {
                table.read(token, &mut rows[i * hidden..][..hidden]);
                low.column(token, &mut columns[i * rank..][..rank]);
            }
            let b = Right::Rows { data: &low.b_transposed, stride: hidden };
            let size = (tokens.len(), hidden, rank);
            serial(&mut rows, hidden, size, Left::rows(&columns, rank), b, 1.0, true);
            let mut sums = vec![0f64; hidden];
            for row in rows.chunks_exact(hidden) {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
            }
            sums
        })
        .collect();
    let column = |j: usize| sums.iter().map(|block| block[j]).sum::<f64>().sqrt() as f32;
    (0..hidden).map(column).collect()
}

/// Adds the adapters to `x` `[T, H]`, the embedding of `tokens`, and keeps what the backward pass needs.
pub(crate) fn forward(
    x: Tensor,
    tokens: &[u32],
    factors: &EmbeddingFactors,
    rows: &Rows,
    scope: Scope,
) -> Result<(Tensor, Kept), OpError> {
    let hidden = factors.hidden;
    let mut x = into_vec(OP, x)?;
    let segments = rows.segments(tokens.len());
    let mut kept: Vec<KeptSegment> = Vec::with_capacity(segments.len());
    for segment in &segments {
        let mut part = KeptSegment::default();
        if let Some(low) = factors.form(segment.adapter) {
            let x = &mut x[segment.rows.start * hidden..segment.rows.end * hidden];
            part.low = scope.pool.take(segment.rows.len() * low.rank);
            for (out, &token) in part.low.chunks_exact_mut(low.rank).zip(&tokens[segment.rows.clone()]) {
                low.column(token as usize, out);
            }
            let b = Right::Rows { data: &low.b_transposed, stride: hidden };
            let product = Product::new(x, segment.rows.len(), hidden).accumulated(true);
            run([product.term(Left::rows(&part.low, low.rank), b, low.rank)], scope.flops);
            if let Some(magnitude) = &low.magnitude {
                part.product = scope.pool.take(x.len());
                part.product.copy_from_slice(x);
                magnitude.scale(&part.product, x, false);
            }
        }
        kept.push(part);
    }
    Ok((matrix(x, hidden)?, Kept { segments: kept }))
}

/// Gradients of the adapters from that of the embedding's result `[T, H]`, written to their places.
pub(crate) fn backward(
    dy: &Tensor,
    tokens: &[u32],
    factors: &EmbeddingFactors,
    kept: &Kept,
    gradients: &mut [f32],
    rows: &Rows,
    scope: Scope,
) -> Result<(), OpError> {
    let (hidden, dy) = (factors.hidden, view(OP, dy)?);
    for (segment, kept) in rows.segments(tokens.len()).iter().zip(&kept.segments) {
        let Some(low) = factors.form(segment.adapter) else { continue };
        let (rank, n) = (low.rank, segment.rows.len());
        let dy = &dy[segment.rows.start * hidden..segment.rows.end * hidden];
        let mut scaled = Vec::new();
        if let Some(magnitude) = &low.magnitude {
            magnitude.gradient(dy, &kept.product, &mut gradients[magnitude.place.clone()], false);
            scaled = scope.pool.take(dy.len());
            magnitude.unscale(dy, &mut scaled);
        }
        let d = if scaled.is_empty() { dy } else { &scaled };
        let mut v = scope.pool.take(n * rank);
        let [da, db] =
            carve(gradients, &low.places).try_into().unwrap_or_else(|_| unreachable!("two places"));
        let b = Right::Rows { data: low.b, stride: rank };
        let down = Product::new(&mut v, n, rank).term(Left::rows(d, hidden), b, hidden).scaled(low.scale);
        let right = Right::Rows { data: d, stride: hidden };
        let db = Product::transposed(db, rank, hidden).term(Left::transposed(&kept.low, rank), right, n);
        run([down, db], scope.flops);
        scatter(&v, &tokens[segment.rows.clone()], da, low.vocabulary);
        scope.pool.put(scaled);
        scope.pool.put(v);
    }
    Ok(())
}

/// `da[r, token] = Σ v[t, r]` over the tokens t that are `token`, in their order.
fn scatter(v: &[f32], tokens: &[u32], da: &mut [f32], vocabulary: usize) {
    let rank = da.len() / vocabulary;
    da.par_chunks_mut(vocabulary).enumerate().for_each(|(r, da)| {
        da.fill(0.0);
        for (t, &token) in tokens.iter().enumerate() {
            da[token as usize] += v[t * rank + r];
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flops::FlopCounter;
    use crate::ops::embedding::lookup;
    use crate::ops::pool::Pool;
    use crate::ops::tests::{check_gradient, noise, same_on_threads};
    use crate::params::{Layout, ModuleKind, ModuleSpec};

    const VOCABULARY: usize = 300;
    const HIDDEN: usize = 20;
    const RANK: usize = 3;
    const SCALE: f32 = 0.5;
    const TOKENS: [u32; 7] = [5, 299, 5, 0, 260, 17, 5];

    struct Fixture {
        layout: Layout,
        table: Vec<f32>,
        adapter: Vec<f32>,
        dy: Vec<f32>,
    }

    fn fixture(magnitude: bool) -> Fixture {
        let mut layout = Layout::new();
        layout.push_module(&ModuleSpec {
            module: "embed",
            kind: ModuleKind::Embedding,
            in_features: VOCABULARY,
            out_features: HIDDEN,
            rank: RANK,
            scale: SCALE,
            magnitude,
        });
        let mut adapter = noise(layout.len(), 1);
        if let Some(place) = layout.modules()[0].magnitude.clone() {
            adapter[place].iter_mut().for_each(|m| *m += 8.0);
        }
        Fixture { layout, table: noise(VOCABULARY * HIDDEN, 2), adapter, dy: noise(TOKENS.len() * HIDDEN, 3) }
    }

    impl Fixture {
        /// `s·B·A` of one token.
        fn delta(&self, adapter: &[f32], token: usize, column: usize) -> f64 {
            let view = AdapterView::new(&self.layout, adapter);
            let low = view.get("embed").unwrap();
            let term =
                |r: usize| f64::from(low.a[r * VOCABULARY + token]) * f64::from(low.b[column * RANK + r]);
            f64::from(SCALE) * (0..RANK).map(term).sum::<f64>()
        }

        /// By the formula, in f64; the norms are those of the fixture's own adapter.
        fn plain(&self, adapter: &[f32]) -> Vec<f64> {
            let value = |adapter: &[f32], token: usize, column: usize| {
                f64::from(self.table[token * HIDDEN + column]) + self.delta(adapter, token, column)
            };
            let view = AdapterView::new(&self.layout, adapter);
            let ratio = |column: usize| match view.get("embed").unwrap().magnitude {
                Some(m) => {
                    let square = |token| value(&self.adapter, token, column).powi(2);
                    f64::from(m[column]) / (0..VOCABULARY).map(square).sum::<f64>().sqrt()
                }
                None => 1.0,
            };
            let ratios: Vec<f64> = (0..HIDDEN).map(ratio).collect();
            let row = |token: u32| (0..HIDDEN).map(move |j| (token as usize, j));
            TOKENS.iter().flat_map(|&t| row(t)).map(|(t, j)| ratios[j] * value(adapter, t, j)).collect()
        }

        fn by_hand(&self) -> [Vec<f32>; 2] {
            let (pool, flops) = (Pool::default(), FlopCounter::new());
            let scope = Scope { pool: &pool, flops: &flops };
            let views = [AdapterView::new(&self.layout, &self.adapter)];
            let table = Table::Rows(&self.table);
            let factors = EmbeddingFactors::prepare("embed", table, &views, scope).unwrap();
            let rows = Rows::of_one(TOKENS.len(), Vec::new());
            let x = lookup(table, &TOKENS, HIDDEN, scope).unwrap();
            let (x, kept) = forward(x, &TOKENS, &factors, &rows, scope).unwrap();
            let dy = matrix(self.dy.clone(), HIDDEN).unwrap();
            let mut gradients = vec![f32::NAN; self.layout.len()];
            backward(&dy, &TOKENS, &factors, &kept, &mut gradients, &rows, scope).unwrap();
            let y = view("test", &x).unwrap().to_vec();
            [y, gradients]
        }
    }

    #[test]
    fn results_and_gradients_follow_the_formula() {
        for magnitude in [false, true] {
            let fixture = fixture(magnitude);
            let [y, gradients] = fixture.by_hand();
            for (y, plain) in y.iter().zip(fixture.plain(&fixture.adapter)) {
                assert!((f64::from(*y) - plain).abs() < 1e-5 * (1.0 + plain.abs()), "{y} and {plain}");
            }
            let loss = |adapter: &[f32]| -> f64 {
                fixture.plain(adapter).iter().zip(&fixture.dy).map(|(y, dy)| y * f64::from(*dy)).sum()
            };
            let module = &fixture.layout.modules()[0];
            let places = [Some(module.a.clone()), Some(module.b.clone()), module.magnitude.clone()];
            for place in places.into_iter().flatten() {
                let part = &fixture.adapter[place.clone()];
                check_gradient("embedding", part, &gradients[place.clone()], |part| {
                    let mut adapter = fixture.adapter.clone();
                    adapter[place.clone()].copy_from_slice(part);
                    loss(&adapter)
                });
            }
            same_on_threads(|| fixture.by_hand().concat());
        }
    }
}
