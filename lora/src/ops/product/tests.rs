//! Products of bf16, against rounded f64 sums, against each kernel, and at several thread counts.

use lorafleet_spec::job::Precision;

use super::{Left, Product, Right, run};
use crate::flops::FlopCounter;
use crate::ops::bf16::{self, round_row, words};
use crate::ops::kernel::{Carry, Kernel, Out, PANEL, Panel, Term};
use crate::ops::tests::{close, noise, same_on_threads};
use crate::ops::weights::Weights;

fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&x| bf16::widen(bf16::round(x))).collect()
}

/// `x · wᵀ` of `x` `[m, k]`, `w` `[n, k]`, and of their rounded values.
fn naive(x: &[f32], w: &[f32], (m, n, k): (usize, usize, usize)) -> Vec<f32> {
    let (x, w) = (rounded(x), rounded(w));
    let element = |i: usize, j: usize| {
        (0..k).map(|d| f64::from(x[i * k + d]) * f64::from(w[j * k + d])).sum::<f64>() as f32
    };
    (0..m * n).map(|at| element(at / n, at % n)).collect()
}

fn transposed(x: &[f32], columns: usize) -> Vec<f32> {
    let rows = x.len() / columns;
    (0..x.len()).map(|at| x[at % rows * columns + at / rows]).collect()
}

#[test]
fn both_passes_of_bf16_weights() {
    for (m, n, k) in [(1, 1, 1), (7, 5, 3), (13, 70, 33), (100, 130, 300), (250, 64, 40), (6, 66, 3333)] {
        let (x, w, low, b) = (noise(m * k, 1), noise(n * k, 2), noise(m * 4, 3), noise(4 * n, 4));
        let flops = FlopCounter::new();
        let forward = Weights::new(&w, n, k, Precision::Bf16);
        let backward = Weights::new(&transposed(&w, k), k, n, Precision::Bf16);
        let base = naive(&x, &w, (m, n, k));
        let mut bits: Option<Vec<f32>> = None;
        for right in [Right::Forward(&forward), Right::Backward(&backward)] {
            let got = same_on_threads(|| {
                let mut y = vec![f32::NAN; m * n];
                run([Product::new(&mut y, m, n).term(Left::rows(&x, k), right, k)], &flops);
                y
            });
            close(&got, &base, 1e-4);
            assert_eq!(*bits.get_or_insert_with(|| got.clone()), got, "the layout changes no bit");
            // An adapter's factors stay in f32, in the same sum.
            let mut y = vec![f32::NAN; m * n];
            let product = Product::new(&mut y, m, n).term(Left::rows(&x, k), right, k);
            run([product.term(Left::rows(&low, 4), Right::Rows { data: &b, stride: n }, 4)], &flops);
            for (at, (y, base)) in y.iter().zip(&base).enumerate() {
                let adapted: f32 = (0..4).map(|r| low[at / n * 4 + r] * b[r * n + at % n]).sum();
                assert!((y - base - adapted).abs() < 1e-4 * (1.0 + y.abs()), "{y}, {base} + {adapted}");
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    let (m, n, k) = (29, 100, 77);
    let (x, weights) = (noise(m * k, 4), Weights::new(&noise(k * n, 5), n, k, Precision::Bf16));
    let product = |rows: &[f32]| {
        let m = rows.len() / k;
        let mut out = vec![0.0; m * n];
        let term = Product::new(&mut out, m, n).term(Left::rows(rows, k), Right::Forward(&weights), k);
        run([term], &FlopCounter::new());
        out
    };
    let whole = product(&x);
    for row in 0..m {
        assert_eq!(product(&x[row * k..(row + 1) * k]), whole[row * n..(row + 1) * n], "row {row}");
    }
}

#[test]
fn every_kernel_multiplies_pairs_to_the_same_bits() {
    let (m, n, k) = (11, 59, 42);
    // Large and tiny, so that roundings differ and subnormal sums occur.
    let scaled = |seed, len| -> Vec<f32> {
        let size = |i: usize| [1.0, 1e3, 3e-20, 1e-19][i % 7 % 4];
        noise(len, seed).into_iter().enumerate().map(|(i, x)| x * size(i)).collect()
    };
    let (x, w) = (scaled(6, m * k), scaled(7, k * PANEL));
    let mut a = vec![0.0; m * words(k)];
    for (row, out) in x.chunks_exact(k).zip(a.chunks_exact_mut(words(k))) {
        round_row(row, out);
    }
    let weights = Weights::new(&w, PANEL, k, Precision::Bf16);
    let b = weights.panel(0);
    let mut want: Option<Vec<u32>> = None;
    for kernel in Kernel::all() {
        let mut c = vec![0f32; m * n];
        let (a, b, k) = (a.as_ptr(), b.as_ptr(), words(k));
        let term = Term { k, a, a_row: k, a_k: 1, b, b_k: PANEL, pairs: true };
        let out = Out { alpha: 1.0, add: std::ptr::null(), c: c.as_mut_ptr(), row: n, col: 1 };
        // SAFETY: the factors hold m·k and k·PANEL words, c m·n values; the kernel is one of this CPU's.
        unsafe {
            Panel { terms: &[term], rows: m, cols: n, out, carry: Carry::NONE }.compute_with(kernel);
        }
        let bits: Vec<u32> = c.iter().map(|c| c.to_bits()).collect();
        assert_eq!(*want.get_or_insert_with(|| bits.clone()), bits, "{kernel:?}");
    }
}
