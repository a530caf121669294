//! Every form against its formula and finite differences, at 1, 2 and 3 threads; rows of several adapters against each alone.

use super::dropout::Mask;
use super::*;
use crate::flops::FlopCounter;
use crate::ops::pool::Pool;
use crate::ops::tests::{check_gradient, noise, same_on_threads};
use crate::ops::{matrix, view};
use crate::params::{AdapterView, Dropout, Layout, ModuleKind, ModuleSpec};
use candle_core::Tensor;

const TOKENS: usize = 90;
const IN: usize = 70;
const OUT: [usize; 3] = [80, 33, 6];
const RANKS: [usize; 2] = [5, 16];
const SCALE: f32 = 1.5;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Lora,
    Dora,
    Whole,
}

/// What is trained, and how.
#[derive(Clone, Copy, Debug)]
struct Case {
    kind: Kind,
    start: bool,
    dropout: bool,
    conv1d: bool,
}

impl Case {
    const fn of(kind: Kind) -> Self {
        Self { kind, start: false, dropout: false, conv1d: false }
    }

    fn all() -> Vec<Self> {
        let mut cases = vec![Self::of(Kind::Whole), Self { conv1d: true, ..Self::of(Kind::Whole) }];
        for kind in [Kind::Lora, Kind::Dora] {
            for (start, dropout) in [(false, false), (true, false), (false, true), (true, true)] {
                cases.push(Self { start, dropout, ..Self::of(kind) });
            }
        }
        cases
    }
}

/// Three layers on one input: with a bias and something trained, with something trained, with neither.
struct Fixture {
    case: Case,
    layers: [FrozenLinear; 3],
    weights: [Vec<f32>; 3],
    bias: Vec<f32>,
    layout: Layout,
    x: Vec<f32>,
    adapter: Vec<f32>,
    start: Vec<f32>,
    dys: [Vec<f32>; 3],
    rows: Rows,
    keys: Vec<TokenKey>,
}

fn transposed(x: &[f32], columns: usize) -> Vec<f32> {
    let rows = x.len() / columns;
    (0..x.len()).map(|at| x[at % rows * columns + at / rows]).collect()
}

fn fixture(case: Case) -> Fixture {
    let weights = [0, 1, 2].map(|i| noise(OUT[i] * IN, i as u64));
    let bias = noise(OUT[0], 3);
    let layer = |i: usize| {
        let bias = (i == 0).then(|| bias.clone());
        if case.conv1d {
            FrozenLinear::conv1d(i.to_string(), &transposed(&weights[i], IN), OUT[i], bias, Precision::F32)
        } else {
            FrozenLinear::new(i.to_string(), &weights[i], OUT[i], bias, Precision::F32)
        }
    };
    let layers = [layer(0), layer(1), layer(2)];
    let mut layout = Layout::new();
    // Not in the layers' order: places are looked up by name.
    for i in [1, 0] {
        if case.kind == Kind::Whole {
            layout.push_whole(&format!("{i}.weight"), &if case.conv1d { [IN, OUT[i]] } else { [OUT[i], IN] });
            continue;
        }
        layout.push_module(&ModuleSpec {
            module: &i.to_string(),
            kind: ModuleKind::Linear,
            in_features: IN,
            out_features: OUT[i],
            rank: RANKS[i],
            scale: SCALE,
            magnitude: case.kind == Kind::Dora,
        });
    }
    if case.kind == Kind::Whole {
        layout.push_whole("0.bias", &[OUT[0]]);
    }
    let mut adapter = noise(layout.len(), 4);
    for place in layout.modules().iter().filter_map(|m| m.magnitude.clone()) {
        adapter[place].iter_mut().for_each(|m| *m += 6.0);
    }
    let dys = [0, 1, 2].map(|i| noise(TOKENS * OUT[i], 5 + i as u64));
    let keys: Vec<_> = (0..TOKENS as u32).map(|t| TokenKey { example: t / 40, token: t % 40 }).collect();
    let start = noise(layout.len(), 9);
    let rows = Rows::of_one(TOKENS, keys.clone());
    Fixture { case, layers, weights, bias, layout, x: noise(TOKENS * IN, 8), adapter, start, dys, rows, keys }
}

/// `W + s·B·A`, in f64, `[out, in]`.
fn plus_product(w: &[f64], a: &[f32], b: &[f32], scale: f64) -> Vec<f64> {
    let rank = a.len() / IN;
    let product = |at: usize| -> f64 {
        let (o, i) = (at / IN, at % IN);
        (0..rank).map(|r| f64::from(b[o * rank + r]) * f64::from(a[r * IN + i])).sum()
    };
    w.iter().enumerate().map(|(at, w)| w + scale * product(at)).collect()
}

fn times(x: &[f64], w: &[f64]) -> Vec<f64> {
    let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
    x.chunks_exact(IN).flat_map(|x| w.chunks_exact(IN).map(move |w| dot(x, w))).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

impl Fixture {
    fn view<'a>(&'a self, adapter: &'a [f32]) -> AdapterView<'a> {
        AdapterView {
            frozen_start: self.case.start.then_some(&self.start),
            dropout: self.case.dropout.then_some(Dropout { p: 0.3, seed: 1, step: 2 }),
            ..AdapterView::new(&self.layout, adapter)
        }
    }

    /// The result of layer i, by the formula, in f64; DoRA's norms are those of the fixture's own adapter.
    fn plain(&self, i: usize, x: &[f32], adapter: &[f32]) -> Vec<f64> {
        let (view, name) = (self.view(adapter), i.to_string());
        let w = wide(&self.weights[i]);
        let bias = |y: Vec<f64>, bias: &[f32]| -> Vec<f64> {
            let columns = bias.len();
            y.iter().enumerate().map(|(at, y)| y + f64::from(bias[at % columns])).collect()
        };
        let frozen_bias = if i == 0 { self.bias.clone() } else { vec![0.0; OUT[i]] };
        if let Some((weight, _)) = view.whole(&format!("{name}.weight")) {
            let weight = if self.case.conv1d { transposed(weight, OUT[i]) } else { weight.to_vec() };
            let trained = view.whole("0.bias").filter(|_| i == 0).map(|(bias, _)| bias.to_vec());
            return bias(times(&wide(x), &wide(&weight)), &trained.unwrap_or(frozen_bias));
        }
        let Some(lora) = view.get(&name) else {
            return bias(times(&wide(x), &w), &frozen_bias);
        };
        let scale = f64::from(SCALE);
        let base = match lora.start {
            Some((a, b)) => plus_product(&w, a, b, -scale),
            None => w,
        };
        let mut dropped = x.to_vec();
        if let Some(mask) = Mask::of(view.dropout, &name) {
            mask.apply_in_place(&mut dropped, IN, &self.keys);
        }
        let delta = plus_product(&vec![0.0; base.len()], lora.a, lora.b, scale);
        let (whole, low) = (times(&wide(x), &base), times(&wide(&dropped), &delta));
        let sum = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f64>>();
        let Some(m) = lora.magnitude else { return bias(sum(&whole, &low), &frozen_bias) };
        let own = self.view(&self.adapter).get(&name).unwrap();
        let norms: Vec<f64> = plus_product(&base, own.a, own.b, scale)
            .chunks_exact(IN)
            .map(|row| row.iter().map(|x| x * x).sum::<f64>().sqrt())
            .collect();
        // PEFT: result + (m/‖·‖ − 1)·(drop(x)·Wᵀ) + m/‖·‖·s·(drop(x)·Aᵀ)·Bᵀ.
        let dropped = times(&wide(&dropped), &base);
        let y = (0..whole.len()).map(|at| {
            let ratio = f64::from(m[at % OUT[i]]) / norms[at % OUT[i]];
            whole[at] + (ratio - 1.0) * dropped[at] + ratio * low[at]
        });
        bias(y.collect(), &frozen_bias)
    }

    fn loss(&self, x: &[f32], adapter: &[f32]) -> f64 {
        let dot = |i: usize| -> f64 {
            self.plain(i, x, adapter).iter().zip(&self.dys[i]).map(|(y, dy)| y * f64::from(*dy)).sum()
        };
        (0..3).map(dot).sum()
    }

    /// Results, then the input's gradient, then the adapter's.
    fn by_hand(&self) -> [Vec<f32>; 3] {
        pass(&self.layers, &[self.view(&self.adapter)], &self.x, &self.dys, &self.rows)
    }
}

/// One pass forward and back: results, the input's gradient, the adapters' gradients.
fn pass(
    layers: &[FrozenLinear; 3],
    views: &[AdapterView],
    x: &[f32],
    dys: &[Vec<f32>; 3],
    rows: &Rows,
) -> [Vec<f32>; 3] {
    let (pool, flops) = (Pool::default(), FlopCounter::new());
    let scope = Scope { pool: &pool, flops: &flops };
    let factors = Factors::prepare(layers.iter(), views, scope);
    let adapted: Vec<Adapted> = layers.iter().zip(factors.iter().map(Option::as_ref)).collect();
    let x = matrix(x.to_vec(), IN).unwrap();
    let outputs = forward(&x, &adapted, None, rows, scope).unwrap();
    let dys = [0, 1, 2].map(|i| matrix(dys[i].clone(), OUT[i]).unwrap());
    let upstream: Vec<Upstream> = adapted
        .iter()
        .zip(&dys)
        .zip(&outputs)
        .map(|((layer, dy), out)| Upstream { layer: *layer, dy, kept: &out.kept })
        .collect();
    let (dx, reduced) = backward_input(&upstream, true, rows, scope).unwrap();
    // NaN where nothing is written.
    let mut gradients = vec![f32::NAN; views.iter().map(|view| view.layout.len()).sum()];
    backward_weights(&upstream, reduced, &x, &mut gradients, Into::Overwrite, rows, scope).unwrap();
    let y = outputs.iter().flat_map(|o| values(&o.y)).collect();
    drop(upstream);
    outputs.into_iter().for_each(|o| o.kept.recycle(scope));
    factors.into_iter().flatten().for_each(|f| f.recycle(scope));
    [y, values(&dx.unwrap()), gradients]
}

fn values(t: &Tensor) -> Vec<f32> {
    view("test", t).unwrap().to_vec()
}

#[test]
fn results_and_gradients_follow_the_formula() {
    for case in Case::all() {
        let fixture = fixture(case);
        let [y, dx, gradients] = fixture.by_hand();
        let plain: Vec<f64> = (0..3).flat_map(|i| fixture.plain(i, &fixture.x, &fixture.adapter)).collect();
        for (i, (y, plain)) in y.iter().zip(&plain).enumerate() {
            let off = (f64::from(*y) - plain).abs();
            assert!(off < 1e-4 * (1.0 + plain.abs()), "{case:?}: [{i}]: {y} and {plain}");
        }
        check_gradient(&format!("{case:?}: x"), &fixture.x, &dx, |x| fixture.loss(x, &fixture.adapter));
        check_gradient(&format!("{case:?}: trained"), &fixture.adapter, &gradients, |adapter| {
            fixture.loss(&fixture.x, adapter)
        });
        for place in fixture.layout.modules().iter().filter_map(|m| m.magnitude.clone()) {
            let part = &fixture.adapter[place.clone()];
            check_gradient(&format!("{case:?}: magnitude"), part, &gradients[place.clone()], |part| {
                let mut adapter = fixture.adapter.clone();
                adapter[place.clone()].copy_from_slice(part);
                fixture.loss(&fixture.x, &adapter)
            });
        }
        let bits = same_on_threads(|| fixture.by_hand().concat());
        assert_eq!(bits, [y, dx, gradients].concat());
    }
}

#[test]
fn rows_of_several_adapters_are_what_each_is_alone() {
    // Rows 10..50 of one form, 60..90 of another, the others of none.
    let keys = fixture(Case::of(Kind::Lora)).keys;
    for (first, second) in [
        (Case::of(Kind::Lora), Case { dropout: true, ..Case::of(Kind::Dora) }),
        (Case { dropout: true, ..Case::of(Kind::Lora) }, Case { start: true, ..Case::of(Kind::Lora) }),
        (Case::of(Kind::Whole), Case { start: true, ..Case::of(Kind::Dora) }),
    ] {
        let (one, two) = (fixture(first), fixture(second));
        let (x, dys) = (&one.x, &one.dys);
        let views = [one.view(&one.adapter), two.view(&two.adapter)];
        let rows = Rows::new(vec![10..50, 60..90], keys.clone());
        let [y, dx, gradients] = pass(&one.layers, &views, x, dys, &rows);
        let mut at = 0;
        for (range, adapter) in [(0..10, None), (10..50, Some(0)), (50..60, None), (60..90, Some(1))] {
            let part = |v: &[f32], n: usize| v[range.start * n..range.end * n].to_vec();
            let dys = [0, 1, 2].map(|i| part(&dys[i], OUT[i]));
            let rows = Rows::of_one(range.len(), keys[range.clone()].to_vec());
            let views: Vec<_> = adapter.map(|i: usize| views[i]).into_iter().collect();
            let [y_alone, dx_alone, gradients_alone] = pass(&one.layers, &views, &part(x, IN), &dys, &rows);
            let mut column = 0;
            let mut alone = 0;
            for out in OUT {
                let together = &y[column + range.start * out..column + range.end * out];
                assert_eq!(together, &y_alone[alone..alone + range.len() * out], "{first:?} {second:?}");
                column += TOKENS * out;
                alone += range.len() * out;
            }
            assert_eq!(part(&dx, IN), dx_alone, "{first:?} {second:?}");
            assert_eq!(gradients[at..at + gradients_alone.len()], gradients_alone, "{first:?} {second:?}");
            at += gradients_alone.len();
        }
        assert_eq!(at, gradients.len());
    }
}

#[test]
fn chunks_of_rows_add_up() {
    for case in [Case::of(Kind::Whole), Case::of(Kind::Dora), Case { dropout: true, ..Case::of(Kind::Lora) }]
    {
        let fixture = fixture(case);
        let [_, _, whole] = fixture.by_hand();
        let (pool, flops) = (Pool::default(), FlopCounter::new());
        let scope = Scope { pool: &pool, flops: &flops };
        let view = fixture.view(&fixture.adapter);
        let factors = Factors::prepare(fixture.layers.iter(), &[view], scope);
        let mut gradients = vec![f32::NAN; fixture.layout.len()];
        for (chunk, into) in [(0..40, Into::Overwrite), (40..90, Into::Add)] {
            let part = |v: &[f32], n: usize| matrix(v[chunk.start * n..chunk.end * n].to_vec(), n).unwrap();
            let indices: Vec<u32> = (chunk.start as u32..chunk.end as u32).collect();
            let rows = fixture.rows.gather(&indices);
            let x = part(&fixture.x, IN);
            for (i, layer) in fixture.layers.iter().enumerate() {
                let adapted = (layer, factors[i].as_ref());
                let kept = &forward(&x, &[adapted], None, &rows, scope).unwrap()[0].kept;
                let dy = part(&fixture.dys[i], OUT[i]);
                let upstream = [Upstream { layer: adapted, dy: &dy, kept }];
                let (dx, reduced) = backward_input(&upstream, false, &rows, scope).unwrap();
                assert!(dx.is_none());
                backward_weights(&upstream, reduced, &x, &mut gradients, into, &rows, scope).unwrap();
            }
        }
        for (i, (sum, whole)) in gradients.iter().zip(&whole).enumerate() {
            assert!((sum - whole).abs() < 1e-4 * (1.0 + whole.abs()), "{case:?} [{i}]: {sum} and {whole}");
        }
    }
}

#[test]
fn what_is_added_is_added_to_every_form() {
    for case in Case::all() {
        let fixture = fixture(case);
        let (pool, flops) = (Pool::default(), FlopCounter::new());
        let scope = Scope { pool: &pool, flops: &flops };
        let factors = Factors::prepare(fixture.layers.iter(), &[fixture.view(&fixture.adapter)], scope);
        let x = matrix(fixture.x.clone(), IN).unwrap();
        let plus = matrix(noise(TOKENS * OUT[0], 11), OUT[0]).unwrap();
        let adapted = [(&fixture.layers[0], factors[0].as_ref())];
        let y = |plus| values(&forward(&x, &adapted, plus, &fixture.rows, scope).unwrap()[0].y);
        for ((sum, y), plus) in y(Some(&plus)).iter().zip(y(None)).zip(values(&plus)) {
            assert!((sum - y - plus).abs() < 1e-4, "{case:?}: {sum}, {y} and {plus}");
        }
    }
}

#[test]
fn the_operations_of_an_adapter_are_counted() {
    let fixture = fixture(Case::of(Kind::Lora));
    let (pool, flops) = (Pool::default(), FlopCounter::new());
    let scope = Scope { pool: &pool, flops: &flops };
    let factors = Factors::prepare(fixture.layers.iter(), &[fixture.view(&fixture.adapter)], scope);
    let x = matrix(fixture.x.clone(), IN).unwrap();
    forward(&x, &[(&fixture.layers[1], factors[1].as_ref())], None, &fixture.rows, scope).unwrap();
    assert_eq!(flops.total() as usize, 2 * TOKENS * (IN * OUT[1] + RANKS[1] * (IN + OUT[1])));
}

#[test]
fn parts_are_carved_in_the_order_asked_for() {
    let mut buffer: Vec<f32> = (0..10).map(|i| i as f32).collect();
    let parts = carve(&mut buffer, &[6..9, 0..2, 2..3]);
    assert_eq!(parts, [&[6.0, 7.0, 8.0][..], &[0.0, 1.0], &[2.0]]);
}
