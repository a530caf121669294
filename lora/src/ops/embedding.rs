//! Looks tokens up in the embedding table.

use candle_core::Tensor;

use super::product::Packed;
use super::{OpError, Scope, for_rows, matrix};

/// The embedding table `[V, H]`, frozen.
#[derive(Debug)]
pub(crate) enum Table<'a> {
    /// Row-major.
    Rows(&'a [f32]),
    /// Shared with the output head's matrix in the layout of its backward pass.
    Packed(&'a Packed),
}

/// `tokens` → `[T, H]`. Every token must be below V.
pub(crate) fn lookup(table: Table, tokens: &[u32], hidden: usize, scope: Scope) -> Result<Tensor, OpError> {
    let mut x = scope.pool.take(tokens.len() * hidden);
    for_rows(&mut x, hidden, |first, rows| {
        for (row, &token) in rows.chunks_exact_mut(hidden).zip(&tokens[first..]) {
            let token = token as usize;
            match table {
                Table::Rows(values) => row.copy_from_slice(&values[token * hidden..][..hidden]),
                Table::Packed(packed) => packed.read_row(token, row),
            }
        }
    });
    matrix(x, hidden)
}
