//! Looks tokens up in the embedding table.

use candle_core::Tensor;

use super::weights::Weights;
use super::{OpError, Scope, for_rows, matrix};

/// The embedding table `[V, H]`, frozen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Table<'a> {
    /// Row-major.
    Rows(&'a [f32]),
    /// Shared with the output head.
    Packed(&'a Weights),
}

impl Table<'_> {
    /// Reads one token's row, of length H.
    pub fn read(&self, token: usize, row: &mut [f32]) {
        match self {
            Table::Rows(values) => row.copy_from_slice(&values[token * row.len()..][..row.len()]),
            Table::Packed(packed) => packed.read_row(token, row),
        }
    }
}

/// `tokens` → `[T, H]`. Every token must be below V.
pub(crate) fn lookup(table: Table, tokens: &[u32], hidden: usize, scope: Scope) -> Result<Tensor, OpError> {
    let mut x = scope.pool.take(tokens.len() * hidden);
    for_rows(&mut x, hidden, |first, rows| {
        for (row, &token) in rows.chunks_exact_mut(hidden).zip(&tokens[first..]) {
            table.read(token as usize, row);
        }
    });
    matrix(x, hidden)
}
