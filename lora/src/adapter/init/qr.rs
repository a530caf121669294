//! The leading part of a QR decomposition by Householder reflections, in f64, with LAPACK's signs.

/// OLoRA's factors (arXiv:2406.01775) of a row-major `[m, n]` weight: `B`, the first `rank` columns of Q `[m, rank]`, and `A`,
/// the first rows of R `[rank, n]`.
pub(super) fn leading(weight: &[f32], m: usize, n: usize, rank: usize) -> (Vec<f32>, Vec<f32>) {
    // Only the first `rank` columns decide about the first columns of Q.
    let mut columns: Vec<Vec<f64>> =
        (0..rank).map(|j| (0..m).map(|i| f64::from(weight[i * n + j])).collect()).collect();
    let mut reflections: Vec<Reflection> = Vec::with_capacity(rank);
    for j in 0..rank {
        for (at, reflection) in reflections.iter().enumerate() {
            reflection.apply(&mut columns[j][at..]);
        }
        reflections.push(Reflection::of(&columns[j][j..]));
    }
    let q: Vec<Vec<f64>> = (0..rank)
        .map(|j| {
            let mut column = vec![0.0; m];
            column[j] = 1.0;
            for (at, reflection) in reflections.iter().enumerate().rev() {
                reflection.apply(&mut column[at..]);
            }
            column
        })
        .collect();
    let row = |q: &Vec<f64>| {
        let mut row = vec![0f64; n];
        for (weights, q) in weight.chunks_exact(n).zip(q) {
            row.iter_mut().zip(weights).for_each(|(r, w)| *r += q * f64::from(*w));
        }
        row
    };
    let a = q.iter().flat_map(row).map(|x| x as f32).collect();
    let b = (0..m).flat_map(|i| q.iter().map(move |column| column[i] as f32)).collect();
    (a, b)
}

/// `I − τ·v·vᵀ`, which maps a vector to a multiple of the first axis.
struct Reflection {
    v: Vec<f64>,
    tau: f64,
}

impl Reflection {
    /// LAPACK's dlarfg: the multiple has the sign opposite to the first entry's.
    fn of(x: &[f64]) -> Self {
        let rest: f64 = x[1..].iter().map(|x| x * x).sum();
        if rest == 0.0 {
            return Self { v: vec![0.0; x.len()], tau: 0.0 };
        }
        let beta = -(x[0] * x[0] + rest).sqrt().copysign(x[0]);
        let mut v: Vec<f64> = x.iter().map(|value| value / (x[0] - beta)).collect();
        v[0] = 1.0;
        Self { v, tau: (beta - x[0]) / beta }
    }

    fn apply(&self, x: &mut [f64]) {
        let projection: f64 = self.tau * self.v.iter().zip(&*x).map(|(v, x)| v * x).sum::<f64>();
        x.iter_mut().zip(&self.v).for_each(|(x, v)| *x -= projection * v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::noise;

    #[test]
    fn columns_are_orthonormal_and_multiply_to_the_projection() {
        for (m, n, rank) in [(9, 6, 6), (6, 9, 4), (40, 30, 3), (3, 3, 3), (5, 4, 1)] {
            let w = noise(m * n, (m * n) as u64);
            let (a, b) = leading(&w, m, n, rank);
            for i in 0..rank {
                for j in 0..rank {
                    let dot: f32 = (0..m).map(|o| b[o * rank + i] * b[o * rank + j]).sum();
                    assert!((dot - if i == j { 1.0 } else { 0.0 }).abs() < 1e-5);
                }
                // R is upper triangular.
                assert!((0..i.min(n)).all(|j| a[i * n + j].abs() < 1e-5));
            }
            // The first columns are reproduced.
            for o in 0..m {
                for i in 0..rank.min(n) {
                    let product: f32 = (0..rank).map(|r| b[o * rank + r] * a[r * n + i]).sum();
                    assert!((product - w[o * n + i]).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn signs_are_lapacks() {
        // numpy.linalg.qr([[3, 1], [4, 2]]).
        let (a, b) = leading(&[3.0, 1.0, 4.0, 2.0], 2, 2, 2);
        for (found, expected) in
            a.iter().zip([-5.0, -2.2, 0.0, 0.4]).chain(b.iter().zip([-0.6, -0.8, -0.8, 0.6]))
        {
            assert!((found - expected).abs() < 1e-6, "{found} and {expected}");
        }
    }
}
