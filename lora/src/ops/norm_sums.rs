//! Sums over tokens, as gradients of norms' weights and of biases are: in blocks of rows, added in one order.

use std::ops::Range;

use rayon::prelude::*;

use super::simd::vectorized;
use super::{Scope, task_rows};

/// What is summed: that many rows, of that many values each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sums {
    pub rows: usize,
    pub columns: usize,
}

/// Adds to `out` what `sum` adds to zeros for each block of rows; blocks are the same whatever the number of threads.
pub(crate) fn add_blocks(
    Sums { rows, columns }: Sums,
    out: &mut [f32],
    scope: Scope,
    sum: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    assert_eq!(out.len(), columns, "a sum over rows has one value per column");
    if columns == 0 {
        return;
    }
    let block = task_rows(columns);
    let mut partial = scope.pool.take(rows.div_ceil(block) * columns);
    partial.par_chunks_exact_mut(columns).enumerate().for_each(|(i, partial)| {
        partial.fill(0.0);
        sum(i * block..((i + 1) * block).min(rows), partial);
    });
    partial.chunks_exact(columns).for_each(|partial| add(out, partial));
    scope.pool.put(partial);
}

vectorized! {
    fn add(out: &mut [f32], values: &[f32]) {
        for (out, x) in out.iter_mut().zip(values) {
            *out += x;
        }
    }
}

/// Adds the sum of the rows of `d` `[rows, columns]` to `out` `[columns]`: the gradient of a bias.
pub(crate) fn add_rows(d: &[f32], out: &mut [f32], scope: Scope) {
    let columns = out.len();
    let sums = Sums { rows: d.len() / columns.max(1), columns };
    add_blocks(sums, out, scope, |rows, sums| {
        d[rows.start * columns..rows.end * columns].chunks_exact(columns).for_each(|row| add(sums, row));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{close, noise, same_on_threads, scoped};

    #[test]
    fn rows_are_added_to_what_is_there() {
        let d = noise(5000 * 37, 3);
        let sums = same_on_threads(|| {
            let mut out = vec![1.0; 37];
            scoped(|scope| add_rows(&d, &mut out, scope));
            out
        });
        let want: Vec<f32> = (0..37)
            .map(|c| (1.0 + (0..5000).map(|r| f64::from(d[r * 37 + c])).sum::<f64>()) as f32)
            .collect();
        close(&sums, &want, 1e-5);
        scoped(|scope| add_rows(&[], &mut [], scope));
    }
}
