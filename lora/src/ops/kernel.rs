//! The register-tile kernel under every matrix product: `C = [add +] alpha · Σ A·B` for one panel of columns.
//!
//! Each output element is one chain of multiply-adds over the summed dimension, term after term, in one order. So its
//! bits depend neither on how the work is split between threads, nor on which other rows and columns are computed.
//! A chain may be interrupted: its sum so far is carried in memory, and the next call goes on with it.

mod vectors;

#[cfg(target_arch = "x86_64")]
use vectors::{Avx2, Avx512, Avx512Bf16};
use vectors::{Portable, Simd};

/// Columns of a panel: packed matrices are laid out in panels this wide.
pub(crate) const PANEL: usize = 64;
/// Rows of a register tile.
pub(crate) const ROWS: usize = 6;

/// One summand `A·B` of a panel. `A` is `[rows, k]` with any strides, `B` is `[k, columns]` with unit column stride.
#[derive(Clone, Copy)]
pub(crate) struct Term {
    /// Length of the summed dimension, in words of 32 bits.
    pub k: usize,
    /// First word of `A`.
    pub a: *const f32,
    /// Distance between rows of `A`.
    pub a_row: usize,
    /// Distance between columns of `A`.
    pub a_k: usize,
    /// First word of `B`.
    pub b: *const f32,
    /// Distance between rows of `B`.
    pub b_k: usize,
    /// Whether a word is a pair of bf16, neighbours in the summed dimension, instead of one f32.
    pub pairs: bool,
}

impl Term {
    /// A summand of nothing.
    pub const EMPTY: Self =
        Self { k: 0, a: std::ptr::null(), a_row: 0, a_k: 0, b: std::ptr::null(), b_k: 0, pairs: false };
}

/// Where a panel's result goes. A null `add` means zero; `add` may be `c` itself.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    /// Factor of the sum.
    pub alpha: f32,
    /// First element of the matrix that is added.
    pub add: *const f32,
    /// First element of the result.
    pub c: *mut f32,
    /// Distance between rows of `add` and of the result.
    pub row: usize,
    /// Distance between columns of `add` and of the result.
    pub col: usize,
}

/// Sums of chains that are interrupted, rows of [`PANEL`] values.
#[derive(Clone, Copy)]
pub(crate) struct Carry {
    /// The sums to go on with; null where the chains begin.
    pub from: *const f32,
    /// Where the sums are left; null where the chains end, and their results go to [`Out`].
    pub to: *mut f32,
}

impl Carry {
    /// Chains that begin and end in one call.
    pub const NONE: Self = Self { from: std::ptr::null(), to: std::ptr::null_mut() };
}

/// One panel: up to [`PANEL`] columns, any number of rows.
pub(crate) struct Panel<'a> {
    /// The summands, in the order in which they are added.
    pub terms: &'a [Term],
    /// Rows of the result.
    pub rows: usize,
    /// Columns of the result, at most [`PANEL`].
    pub cols: usize,
    /// The destination.
    pub out: Out,
    /// Where the chains come from and go to.
    pub carry: Carry,
}

/// Computes the sums of `MR` rows and `NV` vectors of columns, the last vector `tail` lanes wide, and stores them.
#[inline(always)]
unsafe fn tile<S: Simd, const MR: usize, const NV: usize>(
    panel: &Panel,
    row: usize,
    col: usize,
    tail: usize,
) {
    // SAFETY: the caller of `Panel::compute` vouches for every element of `rows` × `cols` of the operands.
    unsafe {
        let mut acc = [[S::splat(0.0); NV]; MR];
        if !panel.carry.from.is_null() {
            for (r, sums) in acc.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = S::load(panel.carry.from.add((row + r) * PANEL + col + v * S::LANES));
                }
            }
        }
        for term in panel.terms {
            acc = if term.pairs {
                chain::<S, MR, NV, true>(acc, term, row, col, tail)
            } else {
                chain::<S, MR, NV, false>(acc, term, row, col, tail)
            };
        }
        if panel.carry.to.is_null() {
            return store::<S, MR, NV>(acc, row, col, tail, &panel.out);
        }
        for (r, sums) in acc.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                S::store_part(panel.carry.to.add((row + r) * PANEL + col + v * S::LANES), sum, S::LANES);
            }
        }
    }
}

/// Adds one term to the sums.
#[inline(always)]
unsafe fn chain<S: Simd, const MR: usize, const NV: usize, const PAIRS: bool>(
    mut acc: [[S::V; NV]; MR],
    term: &Term,
    row: usize,
    col: usize,
    tail: usize,
) -> [[S::V; NV]; MR] {
    // SAFETY: as for `tile`.
    unsafe {
        let mut a = term.a.add(row * term.a_row);
        let mut b = term.b.add(col);
        let (a_row, a_k, b_k) = (term.a_row, term.a_k, term.b_k);
        for _ in 0..term.k {
            let mut vectors = [S::splat(0.0); NV];
            for (v, vector) in vectors.iter_mut().enumerate().take(NV - 1) {
                *vector = S::load(b.add(v * S::LANES));
            }
            vectors[NV - 1] = S::load_part(b.add((NV - 1) * S::LANES), tail);
            for (r, sums) in acc.iter_mut().enumerate() {
                let x = S::splat(*a.add(r * a_row));
                for (sum, vector) in sums.iter_mut().zip(vectors) {
                    *sum = if PAIRS { S::pairs(x, vector, *sum) } else { S::mul_add(x, vector, *sum) };
                }
            }
            a = a.wrapping_add(a_k);
            b = b.wrapping_add(b_k);
        }
    }
    acc
}

#[inline(always)]
unsafe fn store<S: Simd, const MR: usize, const NV: usize>(
    acc: [[S::V; NV]; MR],
    row: usize,
    col: usize,
    tail: usize,
    out: &Out,
) {
    // SAFETY: as for `tile`.
    unsafe {
        let alpha = S::splat(out.alpha);
        if out.col != 1 {
            // A copy: were the address of the sums themselves taken, they would live in memory and not in registers.
            let copy = acc;
            return store_strided::<S, MR, NV>(&copy, row, col, tail, out);
        }
        for (r, sums) in acc.iter().enumerate() {
            let at = (row + r) * out.row + col;
            for (v, &sum) in sums.iter().enumerate() {
                let n = if v == NV - 1 { tail } else { S::LANES };
                let mut value = S::mul(sum, alpha);
                if !out.add.is_null() {
                    value = S::add(S::load_part(out.add.add(at + v * S::LANES), n), value);
                }
                S::store_part(out.c.add(at + v * S::LANES), value, n);
            }
        }
    }
}

/// The destination has a column stride (a transposed result): element by element.
#[inline(never)]
unsafe fn store_strided<S: Simd, const MR: usize, const NV: usize>(
    acc: &[[S::V; NV]; MR],
    row: usize,
    col: usize,
    tail: usize,
    out: &Out,
) {
    // SAFETY: as for `tile`; the buffer holds a vector of any instruction set.
    unsafe {
        let mut buffer = [0f32; 16];
        for (r, sums) in acc.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                std::ptr::copy_nonoverlapping((&raw const sum).cast::<f32>(), buffer.as_mut_ptr(), S::LANES);
                let n = if v == NV - 1 { tail } else { S::LANES };
                for (lane, &x) in buffer.iter().enumerate().take(n) {
                    let at = (row + r) * out.row + (col + v * S::LANES + lane) * out.col;
                    let base = if out.add.is_null() { 0.0 } else { *out.add.add(at) };
                    *out.c.add(at) = base + out.alpha * x;
                }
            }
        }
    }
}

/// One compiled kernel: a tile function for each count of rows and of column vectors, and the loop over a panel.
macro_rules! kernel {
    ($name:ident, $simd:ty, $vectors:literal, [$($nv:literal),*], $(#[$feature:meta])?) => {
        mod $name {
            use super::*;

            $(#[$feature])?
            unsafe fn fixed<const MR: usize, const NV: usize>(panel: &Panel, row: usize, col: usize, tail: usize) {
                // SAFETY: the caller's promise, passed on.
                unsafe { tile::<$simd, MR, NV>(panel, row, col, tail) }
            }

            type Tile = unsafe fn(&Panel, usize, usize, usize);
            const TILES: [[Tile; $vectors]; ROWS] = [
                [$(fixed::<1, $nv>),*], [$(fixed::<2, $nv>),*], [$(fixed::<3, $nv>),*],
                [$(fixed::<4, $nv>),*], [$(fixed::<5, $nv>),*], [$(fixed::<6, $nv>),*],
            ];

            /// # Safety
            /// See [`Panel::compute`]; the CPU must have the kernel's features.
            pub(super) unsafe fn panel(panel: &Panel) {
                let lanes = <$simd as Simd>::LANES;
                let mut col = 0;
                while col < panel.cols {
                    let width = (panel.cols - col).min($vectors * lanes);
                    let vectors = width.div_ceil(lanes);
                    let tail = width - (vectors - 1) * lanes;
                    let mut row = 0;
                    while row < panel.rows {
                        let rows = (panel.rows - row).min(ROWS);
                        // SAFETY: the caller's promise, passed on; row and column lie inside the panel.
                        unsafe { TILES[rows - 1][vectors - 1](panel, row, col, tail) };
                        row += rows;
                    }
                    col += width;
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernel!(
    avx512_bf16, Avx512Bf16, 4, [1, 2, 3, 4],
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
);
#[cfg(target_arch = "x86_64")]
kernel!(avx512, Avx512, 4, [1, 2, 3, 4], #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]);
#[cfg(target_arch = "x86_64")]
kernel!(avx2, Avx2, 2, [1, 2], #[target_feature(enable = "avx2,fma")]);
kernel!(portable, Portable, 2, [1, 2],);

/// The compiled kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// 512-bit vectors, with instructions for pairs of bf16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// 512-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 256-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What the compiler's target promises.
    Portable,
}

impl Kernel {
    /// The best one on this CPU.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        match super::simd::level() {
            super::simd::Level::Avx512 if is_x86_feature_detected!("avx512bf16") => return Self::Avx512Bf16,
            super::simd::Level::Avx512 => return Self::Avx512,
            super::simd::Level::Avx2 => return Self::Avx2,
            super::simd::Level::Baseline => {}
        }
        Self::Portable
    }

    /// All that run on this CPU, the best first.
    #[cfg(test)]
    pub fn all() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let all = vec![Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Portable];
        #[cfg(not(target_arch = "x86_64"))]
        let all = vec![Self::Portable];
        all.into_iter().skip_while(|&kernel| kernel != Self::best()).collect()
    }
}

impl Panel<'_> {
    /// Computes the panel with the best kernel of this CPU.
    ///
    /// # Safety
    /// Every element that `rows`, `cols`, the strides and each term's `k` reach must be readable (`a`, `b`, a non-null
    /// `add`) or writable (`c`), and no other thread may touch those of `c` meanwhile. What is carried has `rows` rows.
    pub(crate) unsafe fn compute(&self) {
        // SAFETY: the caller's promise; the kernel was chosen for this CPU.
        unsafe { self.compute_with(Kernel::best()) }
    }

    /// As [`Panel::compute`], with the named kernel.
    ///
    /// # Safety
    /// As there; the CPU has the kernel's features.
    pub(crate) unsafe fn compute_with(&self, kernel: Kernel) {
        // SAFETY: the caller's promise.
        unsafe {
            match kernel {
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx512Bf16 => avx512_bf16::panel(self),
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx512 => avx512::panel(self),
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2 => avx2::panel(self),
                Kernel::Portable => portable::panel(self),
            }
        }
    }
}
