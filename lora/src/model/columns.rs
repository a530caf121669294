//! Cuts the columns of a matrix apart and puts them side by side again; gathers and scatters rows.

use candle_core::Tensor;

use super::ModelError;
use crate::ops::{OpError, Scope, for_rows, matrix, view};

const OP: &str = "columns";

/// Columns of a matrix.
pub(crate) fn width(x: &Tensor) -> Result<usize, OpError> {
    Ok(x.dim(1)?)
}

/// `y` `[T, Σ widths]` → matrices of those widths.
pub(crate) fn split(y: Tensor, widths: &[usize], scope: Scope) -> Result<Vec<Tensor>, ModelError> {
    let mut parts = Vec::with_capacity(widths.len());
    {
        let y = view(OP, &y)?;
        let (columns, mut first) = (widths.iter().sum::<usize>(), 0);
        for &width in widths {
            let mut part = scope.pool.take(y.len() / columns * width);
            for_rows(&mut part, width, |row, part| {
                for (part, y) in part.chunks_exact_mut(width).zip(y[row * columns..].chunks_exact(columns)) {
                    part.copy_from_slice(&y[first..first + width]);
                }
            });
            parts.push(matrix(part, width)?);
            first += width;
        }
    }
    scope.pool.recycle(y)?;
    Ok(parts)
}

/// Matrices of the same height, side by side.
pub(crate) fn join(parts: Vec<Tensor>, scope: Scope) -> Result<Tensor, ModelError> {
    let widths = parts.iter().map(width).collect::<Result<Vec<_>, _>>()?;
    let views = parts.iter().map(|part| view(OP, part)).collect::<Result<Vec<_>, _>>()?;
    let columns = widths.iter().sum();
    let mut y = scope.pool.take(views.iter().map(|view| view.len()).sum());
    for_rows(&mut y, columns, |first, rows| {
        for (row, y) in rows.chunks_exact_mut(columns).enumerate() {
            let mut at = 0;
            for (part, &width) in views.iter().zip(&widths) {
                y[at..at + width].copy_from_slice(&part[(first + row) * width..][..width]);
                at += width;
            }
        }
    });
    drop(views);
    for part in parts {
        scope.pool.recycle(part)?;
    }
    Ok(matrix(y, columns)?)
}

/// Some rows of `x` `[T, n]`, in that order.
pub(crate) fn gather(x: &Tensor, rows: &[u32], scope: Scope) -> Result<Tensor, ModelError> {
    let columns = width(x)?;
    let x = view(OP, x)?;
    let mut y = scope.pool.take(rows.len() * columns);
    for (y, &row) in y.chunks_exact_mut(columns).zip(rows) {
        y.copy_from_slice(&x[row as usize * columns..][..columns]);
    }
    Ok(matrix(y, columns)?)
}

/// The transpose of [`gather`]: `[tokens, n]`, zero where no row is named; the rows are distinct.
pub(crate) fn scatter(y: Tensor, rows: &[u32], tokens: usize, scope: Scope) -> Result<Tensor, ModelError> {
    let columns = width(&y)?;
    let mut x = scope.pool.take(tokens * columns);
    for_rows(&mut x, columns, |_, x| x.fill(0.0));
    for (y, &row) in view(OP, &y)?.chunks_exact(columns).zip(rows) {
        x[row as usize * columns..][..columns].copy_from_slice(y);
    }
    scope.pool.recycle(y)?;
    Ok(matrix(x, columns)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flops::FlopCounter;
    use crate::ops::pool::Pool;
    use crate::ops::tests::noise;

    #[test]
    fn what_was_cut_or_gathered_goes_back() {
        let (pool, flops) = (Pool::default(), FlopCounter::new());
        let scope = Scope { pool: &pool, flops: &flops };
        let values = noise(12 * 7, 1);
        let parts = split(matrix(values.clone(), 7).unwrap(), &[4, 1, 2], scope).unwrap();
        assert_eq!(view(OP, &parts[1]).unwrap()[3], values[3 * 7 + 4]);
        let joined = join(parts, scope).unwrap();
        assert_eq!(view(OP, &joined).unwrap().to_vec(), values);
        let rows = [2, 7, 11];
        let some = gather(&joined, &rows, scope).unwrap();
        let back = scatter(some, &rows, 12, scope).unwrap();
        let back = view(OP, &back).unwrap();
        assert_eq!(back[7 * 7..8 * 7], values[7 * 7..8 * 7]);
        assert!(back[..14].iter().all(|x| *x == 0.0));
    }
}
