//! Every operation against finite differences, against plain loops, and at 1, 2 and 3 threads.

use candle_core::Tensor;
use lorafleet_spec::job::Precision;

use super::kernel::{Carry, Kernel, Out, Panel, Term};
use super::pool::Pool;
use super::product::{Left, Product, Right, run, serial};
use super::weights::Weights;
use super::{Scope, view};
use crate::flops::FlopCounter;

/// Deterministic values in ±1.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let draw = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(draw).collect()
}

/// Runs `f` on a pool of that many threads.
pub(crate) fn on_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

/// Asserts that `f` gives the same bits at 1, 2 and 3 threads; returns them.
pub(crate) fn same_on_threads(f: impl Fn() -> Vec<f32> + Send + Sync) -> Vec<f32> {
    let one = on_threads(1, &f);
    for threads in [2, 3] {
        let more = on_threads(threads, &f);
        assert!(one.iter().map(|x| x.to_bits()).eq(more.iter().map(|x| x.to_bits())), "{threads} threads");
    }
    one
}

pub(crate) fn values(t: &Tensor) -> Vec<f32> {
    view("test", t).unwrap().to_vec()
}

pub(crate) fn scoped<T>(f: impl FnOnce(Scope) -> T) -> T {
    let (pool, flops) = (Pool::default(), FlopCounter::new());
    f(Scope { pool: &pool, flops: &flops })
}

/// Compares a gradient with central differences of `loss`, at some of the places.
pub(crate) fn check_gradient(name: &str, x: &[f32], gradient: &[f32], loss: impl Fn(&[f32]) -> f64) {
    let largest = gradient.iter().fold(1e-3f32, |m, g| m.max(g.abs()));
    let step = 4e-3f32;
    for i in (0..x.len()).step_by((x.len() / 37).max(1)) {
        let mut moved = x.to_vec();
        moved[i] = x[i] + step;
        let up = loss(&moved);
        moved[i] = x[i] - step;
        let down = loss(&moved);
        let numeric = (up - down) / (2.0 * f64::from(step));
        let difference = (numeric - f64::from(gradient[i])).abs();
        assert!(
            difference < 4e-3 * f64::from(largest),
            "{name}[{i}]: {numeric} by difference, {} by hand",
            gradient[i]
        );
    }
}

/// `Σ w·y`, a loss whose gradient of y is w.
pub(crate) fn weigh(y: &[f32], w: &[f32]) -> f64 {
    y.iter().zip(w).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum()
}

fn naive(a: &[f32], b: &[f32], (m, n, k): (usize, usize, usize)) -> Vec<f32> {
    let element =
        |i: usize, j: usize| (0..k).map(|d| f64::from(a[i * k + d]) * f64::from(b[d * n + j])).sum::<f64>();
    (0..m * n).map(|at| element(at / n, at % n) as f32).collect()
}

pub(crate) fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert!((x - y).abs() <= tolerance * (1.0 + y.abs()), "[{i}]: {x} and {y}");
    }
}

fn transposed(x: &[f32], columns: usize) -> Vec<f32> {
    let rows = x.len() / columns;
    (0..x.len()).map(|at| x[at % rows * columns + at / rows]).collect()
}

#[test]
fn products_of_every_layout() {
    for (m, n, k) in [
        (1, 1, 1),
        (7, 5, 3),
        (13, 70, 33),
        (250, 16, 40),
        (64, 199, 48),
        (100, 130, 300),
        (6, 64, 8),
        (20, 66, 2500),
    ] {
        let (a, b, c) = (noise(m * k, 1), noise(k * n, 2), noise(m * n, 3));
        let want = naive(&a, &b, (m, n, k));
        let (at, bt) = (transposed(&a, k), transposed(&b, n));
        let flops = FlopCounter::new();
        let lefts = [Left::rows(&a, k), Left::transposed(&at, m)];
        let forward = Weights::new(&bt, n, k, Precision::F32);
        let backward = Weights::new(&b, k, n, Precision::F32);
        let rights = [
            Right::Rows { data: &b, stride: n },
            Right::Columns { data: &bt, stride: k },
            Right::Forward(&forward),
            Right::Backward(&backward),
        ];
        let mut bits: Option<Vec<f32>> = None;
        for left in lefts {
            for right in rights {
                let got = same_on_threads(|| {
                    let mut out = vec![f32::NAN; m * n];
                    run([Product::new(&mut out, m, n).term(left, right, k)], &flops);
                    out
                });
                close(&got, &want, 1e-4);
                assert_eq!(*bits.get_or_insert_with(|| got.clone()), got, "the layout changes no bit");
            }
        }
        let mut out = vec![0.0; m * n];
        run([Product::transposed(&mut out, m, n).term(lefts[0], rights[0], k)], &flops);
        close(&transposed(&out, m), &want, 1e-4);
        run([Product::new(&mut out, m, n).term(lefts[0], rights[1], k).scaled(-0.5).plus(&c)], &flops);
        let scaled: Vec<f32> = want.iter().zip(&c).map(|(w, c)| c - 0.5 * w).collect();
        close(&out, &scaled, 1e-4);
        run([Product::new(&mut out, m, n).term(lefts[0], rights[1], k).term(lefts[1], rights[0], k)], &flops);
        let doubled: Vec<f32> = want.iter().map(|w| 2.0 * w).collect();
        close(&out, &doubled, 1e-4);
        run([Product::new(&mut out, m, n).term(lefts[0], rights[3], k).accumulated(true)], &flops);
        let tripled: Vec<f32> = want.iter().map(|w| 3.0 * w).collect();
        close(&out, &tripled, 1e-4);
        if k < 1000 {
            serial(&mut out, n, (m, n, k), lefts[1], rights[0], 1.0, true);
            let fourfold: Vec<f32> = want.iter().map(|w| 4.0 * w).collect();
            close(&out, &fourfold, 1e-4);
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    let (m, n, k) = (29, 100, 77);
    let (a, b) = (noise(m * k, 4), noise(k * n, 5));
    let packed = Weights::new(&transposed(&b, n), n, k, Precision::F32);
    let product = |rows: &[f32]| {
        let m = rows.len() / k;
        let mut out = vec![0.0; m * n];
        let term = Product::new(&mut out, m, n).term(Left::rows(rows, k), Right::Forward(&packed), k);
        run([term], &FlopCounter::new());
        out
    };
    let whole = product(&a);
    for row in 0..m {
        assert_eq!(product(&a[row * k..(row + 1) * k]), whole[row * n..(row + 1) * n], "row {row}");
    }
}

#[test]
fn every_kernel_computes_the_same() {
    let (m, n, k) = (11, 59, 21);
    let (a, b) = (noise(m * k, 6), noise(k * n, 7));
    let want = naive(&a, &b, (m, n, k));
    for kernel in Kernel::all() {
        let mut c = vec![0.5; m * n];
        let term = Term { k, a: a.as_ptr(), a_row: k, a_k: 1, b: b.as_ptr(), b_k: n, pairs: false };
        let out = Out { alpha: 2.0, add: c.as_ptr(), c: c.as_mut_ptr(), row: n, col: 1 };
        // SAFETY: the slices hold m·k, k·n and m·n values, and the kernel is one of this CPU's.
        unsafe {
            Panel { terms: &[term], rows: m, cols: n, out, carry: Carry::NONE }.compute_with(kernel);
        }
        let want: Vec<f32> = want.iter().map(|w| 0.5 + 2.0 * w).collect();
        close(&c, &want, 1e-5);
    }
}

#[test]
fn other_types_are_refused_by_name() {
    let half = Tensor::zeros((2, 2), candle_core::DType::F16, &candle_core::Device::Cpu).unwrap();
    let error = view("rms_norm", &half).err().unwrap().to_string();
    assert!(error.contains("rms_norm") && error.contains("F16"), "{error}");
}
