//! The principal part of a matrix: its largest singular values and vectors, in f64, on one thread.
//!
//! Golub-Kahan-Lanczos bidiagonalization with full reorthogonalization: `A·V = U·B`, B upper bidiagonal. It is stopped when
//! the wanted values stand still to rounding, and is exact when it has as many steps as the matrix has columns or rows.
//! The eigenvectors of the small tridiagonal `Bᵀ·B` come by implicit QL (EISPACK's tql2).

use rand_chacha::rand_core::Rng;

use super::generator;

/// Largest singular values, and their vectors by rows.
pub(super) struct Principal {
    /// Descending.
    values: Vec<f64>,
    /// `[rank, m]`.
    left: Vec<Vec<f64>>,
    /// `[rank, n]`.
    right: Vec<Vec<f64>>,
}

impl Principal {
    /// PiSSA's factors (arXiv:2404.02948): `A = √(S/s)·Vᵀ` `[rank, n]`, `B = U·√(S/s)` `[m, rank]`; `s·B·A` is the principal part.
    pub fn factors(&self, scale: f64) -> (Vec<f32>, Vec<f32>) {
        let roots: Vec<f64> = self.values.iter().map(|value| (value / scale).sqrt()).collect();
        let row = |(v, root): (&Vec<f64>, &f64)| v.iter().map(|v| (v * root) as f32).collect::<Vec<_>>();
        let a = self.right.iter().zip(&roots).flat_map(row).collect();
        let outputs = self.left.first().map_or(0, Vec::len);
        let column = |o: usize| self.left.iter().zip(&roots).map(move |(u, root)| (u[o] * root) as f32);
        (a, (0..outputs).flat_map(column).collect())
    }
}

/// How far the wanted eigenvalues of `Aᵀ·A` may be off, relative to the largest.
const TOLERANCE: f64 = 1e-13;

/// The `rank` largest singular values of a row-major `[m, n]` matrix, with their vectors.
///
/// A vector's sign is such that the largest entry of the right one is positive.
pub(super) fn principal(a: &[f32], m: usize, n: usize, rank: usize) -> Principal {
    let mut lanczos = Lanczos::new(a, m, n);
    let most = m.min(n);
    let mut check = (2 * rank + 8).min(most);
    loop {
        while lanczos.steps() < check {
            lanczos.step();
        }
        let ritz = lanczos.ritz();
        let largest = ritz.values.last().copied().unwrap_or(0.0).max(f64::MIN_POSITIVE);
        let wanted = ritz.values.len().saturating_sub(rank)..ritz.values.len();
        let settled = wanted.clone().all(|i| lanczos.residual(&ritz, i) <= TOLERANCE * largest);
        if settled || lanczos.steps() >= most {
            return lanczos.vectors(&ritz, wanted);
        }
        check = (check + check / 3 + 8).min(most);
    }
}

/// The state of the bidiagonalization.
struct Lanczos<'a> {
    a: &'a [f32],
    m: usize,
    n: usize,
    /// Right vectors, one more than there were steps.
    right: Vec<Vec<f64>>,
    left: Vec<Vec<f64>>,
    /// Diagonal of B, and what stands right of it.
    alpha: Vec<f64>,
    beta: Vec<f64>,
}

/// Eigenvalues of `Bᵀ·B`, ascending, and its eigenvectors by columns.
struct Ritz {
    values: Vec<f64>,
    vectors: Vec<f64>,
}

impl<'a> Lanczos<'a> {
    fn new(a: &'a [f32], m: usize, n: usize) -> Self {
        let mut lanczos =
            Self { a, m, n, right: Vec::new(), left: Vec::new(), alpha: Vec::new(), beta: Vec::new() };
        let first = lanczos.fresh_direction();
        lanczos.right.push(first);
        lanczos
    }

    fn steps(&self) -> usize {
        self.alpha.len()
    }

    fn step(&mut self) {
        let j = self.steps();
        let v = &self.right[j];
        let mut u: Vec<f64> = self.a.chunks_exact(self.n).map(|row| dot_mixed(row, v)).collect();
        if let (Some(before), Some(beta)) = (self.left.last(), self.beta.last()) {
            add(&mut u, before, -beta);
        }
        let alpha = orthonormal(&mut u, &self.left);
        let mut w = self.transposed_times(&u);
        add(&mut w, v, -alpha);
        let mut beta = orthonormal(&mut w, &self.right);
        if beta == 0.0 && j + 1 < self.n {
            // An invariant subspace is exhausted: go on in another direction.
            w = self.fresh_direction();
            beta = 0.0;
        }
        self.left.push(u);
        self.right.push(w);
        self.alpha.push(alpha);
        self.beta.push(beta);
    }

    /// A direction orthogonal to those before it, drawn by (size, place) alone: within the matrix's row space while that has
    /// one left, so that as many steps as there are rows exhaust it.
    fn fresh_direction(&self) -> Vec<f64> {
        let mut draws = generator("lorafleet svd 1", self.right.len() as u64, &self.n.to_string());
        let mut draw = |n: usize| -> Vec<f64> {
            (0..n).map(|_| f64::from(draws.next_u32()) / f64::from(1u32 << 31) - 1.0).collect()
        };
        let mut x = self.transposed_times(&draw(self.m));
        if orthonormal(&mut x, &self.right) == 0.0 {
            x = draw(self.n);
            orthonormal(&mut x, &self.right);
        }
        x
    }

    fn transposed_times(&self, u: &[f64]) -> Vec<f64> {
        let mut w = vec![0.0; self.n];
        for (row, u) in self.a.chunks_exact(self.n).zip(u) {
            w.iter_mut().zip(row).for_each(|(w, a)| *w += u * f64::from(*a));
        }
        w
    }

    fn ritz(&self) -> Ritz {
        let k = self.steps();
        let before = |j: usize| if j > 0 { self.beta[j - 1] } else { 0.0 };
        let mut values: Vec<f64> =
            (0..k).map(|j| self.alpha[j] * self.alpha[j] + before(j) * before(j)).collect();
        let mut off: Vec<f64> =
            (0..k).map(|j| if j > 0 { self.alpha[j - 1] * before(j) } else { 0.0 }).collect();
        let mut vectors = vec![0.0; k * k];
        (0..k).for_each(|j| vectors[j * k + j] = 1.0);
        tql2(&mut values, &mut off, &mut vectors);
        Ritz { values, vectors }
    }

    /// `‖Aᵀ·A·v − θ·v‖` of the i-th Ritz pair.
    fn residual(&self, ritz: &Ritz, i: usize) -> f64 {
        let k = self.steps();
        (self.alpha[k - 1] * self.beta[k - 1] * ritz.vectors[(k - 1) * k + i]).abs()
    }

    fn vectors(&self, ritz: &Ritz, wanted: std::ops::Range<usize>) -> Principal {
        let k = self.steps();
        let mut principal = Principal { values: Vec::new(), left: Vec::new(), right: Vec::new() };
        for i in wanted.rev() {
            let mut v = vec![0.0; self.n];
            for (j, basis) in self.right[..k].iter().enumerate() {
                add(&mut v, basis, ritz.vectors[j * k + i]);
            }
            let largest = v.iter().fold(0f64, |max, x| if x.abs() > max.abs() { *x } else { max });
            let size = norm(&v).copysign(largest);
            v.iter_mut().for_each(|x| *x /= size);
            let mut u: Vec<f64> = self.a.chunks_exact(self.n).map(|row| dot_mixed(row, &v)).collect();
            let mut value = norm(&u);
            let largest = *principal.values.first().unwrap_or(&value);
            // What is rounding beside the largest is zero, and has no left vector.
            if value <= 1e-13 * largest {
                value = 0.0;
            }
            u.iter_mut().for_each(|x| *x = if value > 0.0 { *x / value } else { 0.0 });
            principal.values.push(value);
            principal.left.push(u);
            principal.right.push(v);
        }
        debug_assert!(principal.left.iter().all(|u| u.len() == self.m));
        principal
    }
}

/// Makes `x` orthogonal to the basis and of norm one; returns the norm that it had, 0 where nothing but rounding was left.
fn orthonormal(x: &mut [f64], basis: &[Vec<f64>]) -> f64 {
    let before = norm(x);
    // Twice is enough (Kahan, Parlett).
    for _ in 0..2 {
        for b in basis {
            let projection = dot(x, b);
            add(x, b, -projection);
        }
    }
    let size = norm(x);
    if size <= 1e-13 * before {
        x.fill(0.0);
        return 0.0;
    }
    x.iter_mut().for_each(|x| *x /= size);
    size
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    let mut sums = [0f64; 8];
    for (x, y) in x.chunks(8).zip(y.chunks(8)) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += x * y;
        }
    }
    sums.iter().sum()
}

fn dot_mixed(x: &[f32], y: &[f64]) -> f64 {
    let mut sums = [0f64; 8];
    for (x, y) in x.chunks(8).zip(y.chunks(8)) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += f64::from(*x) * y;
        }
    }
    sums.iter().sum()
}

fn norm(x: &[f64]) -> f64 {
    dot(x, x).sqrt()
}

fn add(x: &mut [f64], y: &[f64], factor: f64) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += factor * y);
}

/// Eigenvalues (ascending, in `d`) and eigenvectors (columns of `z`, `[k, k]`, which holds the identity) of the symmetric
/// tridiagonal matrix with the diagonal `d`, and `e[j]` left of `d[j]`: implicit QL with shifts (EISPACK's tql2).
fn tql2(d: &mut [f64], e: &mut [f64], z: &mut [f64]) {
    let k = d.len();
    e.rotate_left(1.min(k));
    for l in 0..k {
        // At most 60 sweeps each: the method converges cubically.
        for _ in 0..60 {
            let size = |i: usize, d: &[f64]| f64::EPSILON * (d[i].abs() + d[i + 1].abs());
            let m = (l..k - 1).find(|&m| e[m].abs() <= size(m, d)).unwrap_or(k - 1);
            if m == l {
                break;
            }
            let mut g = (d[l + 1] - d[l]) / (2.0 * e[l]);
            let mut r = libm::hypot(g, 1.0);
            g = d[m] - d[l] + e[l] / (g + r.copysign(g));
            let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
            let mut early = false;
            for i in (l..m).rev() {
                let (f, b) = (s * e[i], c * e[i]);
                r = libm::hypot(f, g);
                e[i + 1] = r;
                if r == 0.0 {
                    d[i + 1] -= p;
                    e[m] = 0.0;
                    early = true;
                    break;
                }
                (s, c) = (f / r, g / r);
                g = d[i + 1] - p;
                r = (d[i] - g) * s + 2.0 * c * b;
                p = s * r;
                d[i + 1] = g + p;
                g = c * r - b;
                for row in z.chunks_exact_mut(k) {
                    let (x, y) = (row[i], row[i + 1]);
                    (row[i + 1], row[i]) = (s * x + c * y, c * x - s * y);
                }
            }
            if early {
                continue;
            }
            d[l] -= p;
            e[l] = g;
            e[m] = 0.0;
        }
    }
    sort(d, z);
}

/// Sorts the eigenvalues, ascending, with their vectors.
fn sort(d: &mut [f64], z: &mut [f64]) {
    let k = d.len();
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by(|&i, &j| d[i].total_cmp(&d[j]));
    let values: Vec<f64> = order.iter().map(|&i| d[i]).collect();
    d.copy_from_slice(&values);
    for row in z.chunks_exact_mut(k.max(1)) {
        let sorted: Vec<f64> = order.iter().map(|&i| row[i]).collect();
        row.copy_from_slice(&sorted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::noise;

    /// Largest difference between `Aᵀ·u` and `σ·v`, and `A·v` and `σ·u`, and from orthonormality.
    fn error(a: &[f32], m: usize, n: usize, p: &Principal) -> f64 {
        let mut worst = 0f64;
        for (i, value) in p.values.iter().enumerate() {
            let av: Vec<f64> = a.chunks_exact(n).map(|row| dot_mixed(row, &p.right[i])).collect();
            let atu = (0..n).map(|j| (0..m).map(|o| f64::from(a[o * n + j]) * p.left[i][o]).sum::<f64>());
            worst = av.iter().zip(&p.left[i]).fold(worst, |w, (x, u)| w.max((x - value * u).abs()));
            worst = atu.zip(&p.right[i]).fold(worst, |w, (x, v)| w.max((x - value * v).abs()));
            for j in 0..=i {
                let expected = if i == j { 1.0 } else { 0.0 };
                worst = worst.max((dot(&p.right[i], &p.right[j]) - expected).abs());
            }
        }
        worst
    }

    #[test]
    fn vectors_belong_to_their_values() {
        for (m, n, rank) in [(40, 30, 5), (30, 40, 30), (200, 90, 8), (7, 1, 1), (1, 9, 1), (64, 64, 16)] {
            let a = noise(m * n, (m + n) as u64);
            let p = principal(&a, m, n, rank);
            assert_eq!(p.values.len(), rank);
            assert!(p.values.windows(2).all(|w| w[0] >= w[1]), "{:?}", p.values);
            let error = error(&a, m, n, &p);
            assert!(error < 1e-9, "[{m}, {n}]: {error}");
        }
    }

    #[test]
    fn a_known_spectrum_is_found() {
        // Hadamard-like rotations of a diagonal: repeated values, a value of zero.
        let values = [9.0f32, 4.0, 4.0, 1.0, 0.0];
        let mut a = vec![0f32; 25];
        (0..5).for_each(|i| a[i * 5 + i] = values[i]);
        let p = principal(&a, 5, 5, 5);
        for (found, expected) in p.values.iter().zip(values) {
            assert!((found - f64::from(expected)).abs() < 1e-9, "{:?}", p.values);
        }
        assert!(error(&a, 5, 5, &p) < 1e-9);
        let zero = principal(&[0.0; 12], 4, 3, 2);
        assert_eq!(zero.values, [0.0, 0.0]);
    }

    #[test]
    fn factors_multiply_to_the_principal_part() {
        let (m, n) = (12, 10);
        let a = noise(m * n, 3);
        let (low_a, low_b) = principal(&a, m, n, n).factors(2.0);
        for o in 0..m {
            for i in 0..n {
                let product: f32 = (0..n).map(|r| low_b[o * n + r] * low_a[r * n + i]).sum();
                assert!((2.0 * product - a[o * n + i]).abs() < 1e-5);
            }
        }
    }
}
