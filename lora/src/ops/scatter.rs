//! Adds rows of a matrix to rows of a table, whose gradient an embedding's is.

use rayon::prelude::*;

use super::add::add_scaled;

/// Values of a row that one task adds.
const STRIPE: usize = 64;

/// `table[rows[i]] += scale · d[i]`, row after row; `table` and `d` have that many columns.
///
/// Tasks share the work by columns, so that each sum is made in one order.
pub(crate) fn scatter_add(table: &mut [f32], rows: &[usize], d: &[f32], columns: usize, scale: f32) {
    let start = Start(table.as_mut_ptr());
    let len = table.len();
    assert!(rows.iter().all(|row| (row + 1) * columns <= len), "a row of the table");
    assert_eq!(d.len(), rows.len() * columns, "one row of the gradient for each of the table's");
    (0..columns.div_ceil(STRIPE)).into_par_iter().for_each(|stripe| {
        let first = stripe * STRIPE;
        let width = (columns - first).min(STRIPE);
        for (i, row) in rows.iter().enumerate() {
            // SAFETY: inside the table, by the assertion; no other task has these columns.
            let out = unsafe { std::slice::from_raw_parts_mut(start.at(row * columns + first), width) };
            add_scaled(out, &d[i * columns + first..][..width], scale);
        }
    });
}

/// The table's address, of which tasks write disjoint columns.
struct Start(*mut f32);

// SAFETY: see `scatter_add`.
unsafe impl Sync for Start {}

impl Start {
    fn at(&self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{noise, same_on_threads};

    #[test]
    fn rows_that_are_named_twice_are_added_twice() {
        let columns = 130;
        let (rows, d) = ([4, 0, 4, 2], noise(4 * columns, 1));
        let table = same_on_threads(|| {
            let mut table = vec![1.0; 5 * columns];
            scatter_add(&mut table, &rows, &d, columns, 0.5);
            table
        });
        assert_eq!(table[4 * columns + 7], 1.0 + 0.5 * d[7] + 0.5 * d[2 * columns + 7]);
        assert_eq!(table[columns + 3], 1.0);
    }
}
