//! The factors of products, and how they lie in memory.

use lorafleet_spec::job::Precision;

use super::rounding::Rounded;
use crate::ops::kernel::{PANEL, Term};
use crate::ops::transpose::{self, Block};
use crate::ops::weights::{self, Weights};

/// The left factor of a term, `[m, k]` with any strides.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub(super) data: &'a [f32],
    pub(super) row: usize,
    pub(super) depth: usize,
}

impl<'a> Left<'a> {
    /// Row-major, `stride` apart.
    pub fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, row: stride, depth: 1 }
    }

    /// One value everywhere.
    pub fn constant(value: &'a [f32; 1]) -> Self {
        Self { data: value, row: 0, depth: 0 }
    }

    /// The transpose of a row-major matrix whose rows are `stride` apart.
    pub fn transposed(data: &'a [f32], stride: usize) -> Self {
        Self { data, row: 1, depth: stride }
    }
}

/// The right factor of a term, `[k, n]`.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    /// Row-major, `stride` apart.
    Rows { data: &'a [f32], stride: usize },
    /// The transpose of a row-major matrix `[n, k]` whose rows are `stride` apart.
    Columns { data: &'a [f32], stride: usize },
    /// Wᵀ, `[in, out]`: what the forward pass multiplies with.
    Forward(&'a Weights),
    /// W, `[out, in]`: what the backward pass multiplies with.
    Backward(&'a Weights),
}

/// Longest sum over rows as they lie: beyond it they no longer stay in a cache between tiles.
const LONGEST_IN_PLACE: usize = 2048;

#[derive(Clone, Copy)]
pub(super) struct Summand<'a> {
    pub left: Left<'a>,
    pub right: Right<'a>,
    pub k: usize,
}

impl<'a> Summand<'a> {
    /// Checks that the factors hold all that an `[m, n]` result reads.
    pub fn check(&self, m: usize, n: usize) {
        let Self { left, right, k } = *self;
        if m == 0 || n == 0 || k == 0 {
            return;
        }
        let last = (m - 1) * left.row + (k - 1) * left.depth;
        assert!(left.data.len() > last, "left factor of a product too short");
        let matrix = |data: &[f32], stride: usize, rows: usize, columns: usize| {
            let fits = stride >= columns && data.len() >= (rows - 1) * stride + columns;
            assert!(fits, "right factor of a product too short");
        };
        let shape = |rows: usize, columns: usize| {
            assert!((rows, columns) == (k, n), "right factor is [{rows}, {columns}], not [{k}, {n}]");
        };
        match right {
            Right::Rows { data, stride } => matrix(data, stride, k, n),
            Right::Columns { data, stride } => matrix(data, stride, n, k),
            Right::Forward(w) => shape(w.columns(), w.rows()),
            Right::Backward(w) => shape(w.rows(), w.columns()),
        }
    }

    fn precision(&self) -> Precision {
        match self.right {
            Right::Forward(weights) | Right::Backward(weights) => weights.precision(),
            _ => Precision::F32,
        }
    }

    /// Whether pairs of bf16 are multiplied.
    pub fn pairs(&self) -> bool {
        self.precision() == Precision::Bf16
    }

    /// Words of the sum.
    pub fn words(&self) -> usize {
        weights::words(self.precision(), self.k)
    }

    /// Whether the right factor must be brought into the kernel's layout first, block by block.
    pub fn unpacked(&self) -> bool {
        match self.right {
            Right::Columns { .. } | Right::Backward(_) => true,
            Right::Rows { .. } => self.k > LONGEST_IN_PLACE,
            Right::Forward(_) => false,
        }
    }

    /// The summand as tasks read it.
    pub fn factor(&self, rounded: &[Rounded]) -> Factor<'a> {
        let (right, k, unpacked) = (self.right, self.words(), self.unpacked());
        if self.pairs() {
            let words = Rounded::find(rounded, self);
            return Factor { a: words.as_ptr(), a_row: k, a_k: 1, k, right, pairs: true, unpacked };
        }
        let Left { data, row, depth } = self.left;
        Factor { a: data.as_ptr(), a_row: row, a_k: depth, k, right, pairs: false, unpacked }
    }
}

/// A summand whose left factor is in the numbers of the right one. Lengths are in words.
pub(super) struct Factor<'a> {
    a: *const f32,
    a_row: usize,
    a_k: usize,
    /// Length of the sum.
    pub k: usize,
    right: Right<'a>,
    pairs: bool,
    /// See [`Summand::unpacked`].
    pub unpacked: bool,
}

impl Factor<'_> {
    /// The term of one panel, of rows from `row` on, its right factor as it lies.
    pub fn term(&self, row: usize, panel: usize) -> Term {
        let start = |data: &[f32]| data.as_ptr().wrapping_add(panel * PANEL);
        let (b, b_k) = match self.right {
            Right::Rows { data, stride } => (start(data), stride),
            Right::Forward(weights) => (weights.panel(panel).as_ptr(), PANEL),
            Right::Columns { .. } | Right::Backward(_) => unreachable!("these are unpacked"),
        };
        let Self { a, a_row, a_k, k, pairs, .. } = *self;
        Term { k, a: a.wrapping_add(row * a_row), a_row, a_k, b, b_k, pairs }
    }

    /// The term of `len` words of the sum, from `first` on, after [`Factor::unpack`] wrote them to `lines`.
    pub fn part(&self, row: usize, first: usize, len: usize, lines: &[f32]) -> Term {
        let Self { a, a_row, a_k, pairs, .. } = *self;
        let a = a.wrapping_add(row * a_row + first * a_k);
        Term { k: len, a, a_row, a_k, b: lines.as_ptr(), b_k: PANEL, pairs }
    }

    /// Writes `len` lines of one panel of the right factor, from `first` on, `cols` columns wide.
    pub fn unpack(&self, panel: usize, cols: usize, first: usize, len: usize, out: &mut [f32]) {
        match self.right {
            Right::Rows { data, stride } => {
                for (line, out) in (first..first + len).zip(out.chunks_exact_mut(PANEL)) {
                    out[..cols].copy_from_slice(&data[line * stride + panel * PANEL..][..cols]);
                }
            }
            Right::Columns { data, stride } => {
                let words = &data[panel * PANEL * stride + first..];
                let block = Block { words, stride, rows: cols, columns: len };
                transpose::words(block, out, PANEL);
            }
            Right::Backward(weights) => weights.unpack(panel, first, len, out),
            Right::Forward(_) => unreachable!("this is read as it lies"),
        }
    }
}
