//! The register-tile kernel under every matrix product: `C = [add +] alpha · Σ A·B` for one panel of columns.
//!
//! Each output element is one chain of multiply-adds over the summed dimension, term after term, in one order. So its
//! bits depend neither on how the work is split between threads, nor on which other rows and columns are computed.

/// Columns of a panel: packed matrices are laid out in panels this wide.
pub(crate) const PANEL: usize = 64;
/// Rows of a register tile.
pub(crate) const ROWS: usize = 6;

/// One summand `A·B` of a panel. `A` is `[rows, k]` with any strides, `B` is `[k, columns]` with unit column stride.
#[derive(Clone, Copy)]
pub(crate) struct Term {
    /// Length of the summed dimension.
    pub k: usize,
    /// First element of `A`.
    pub a: *const f32,
    /// Distance between rows of `A`.
    pub a_row: usize,
    /// Distance between columns of `A`.
    pub a_k: usize,
    /// First element of `B`.
    pub b: *const f32,
    /// Distance between rows of `B`.
    pub b_k: usize,
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
}

/// Vector operations of one instruction set.
trait Simd {
    type V: Copy;
    const LANES: usize;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn load_part(p: *const f32, n: usize) -> Self::V;
    unsafe fn store_part(p: *mut f32, v: Self::V, n: usize);
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
}

/// Computes the sums of `MR` rows and `NV` vectors of columns, the last vector `tail` lanes wide, and stores them.
#[inline(always)]
unsafe fn tile<S: Simd, const MR: usize, const NV: usize>(
    terms: &[Term],
    row: usize,
    col: usize,
    tail: usize,
    out: &Out,
) {
    // SAFETY: the caller of `Panel::compute` vouches for every element of `rows` × `cols` of the operands.
    unsafe {
        let mut acc = [[S::splat(0.0); NV]; MR];
        for term in terms {
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
                        *sum = S::mul_add(x, vector, *sum);
                    }
                }
                a = a.wrapping_add(a_k);
                b = b.wrapping_add(b_k);
            }
        }
        store::<S, MR, NV>(acc, row, col, tail, out);
    }
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
            unsafe fn fixed<const MR: usize, const NV: usize>(
                terms: &[Term], row: usize, col: usize, tail: usize, out: &Out,
            ) {
                // SAFETY: the caller's promise, passed on.
                unsafe { tile::<$simd, MR, NV>(terms, row, col, tail, out) }
            }

            type Tile = unsafe fn(&[Term], usize, usize, usize, &Out);
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
                        unsafe { TILES[rows - 1][vectors - 1](panel.terms, row, col, tail, &panel.out) };
                        row += rows;
                    }
                    col += width;
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    pub(super) struct Avx512;

    #[inline(always)]
    fn mask(n: usize) -> __mmask16 {
        ((1u32 << n) - 1) as __mmask16
    }

    impl Simd for Avx512 {
        type V = __m512;
        const LANES: usize = 16;
        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            // SAFETY: only instantiated where AVX-512 was detected; likewise below.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            // SAFETY: as above; the caller vouches for the pointer.
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> __m512 {
            // SAFETY: as above; lanes outside of the mask are not read.
            unsafe { _mm512_maskz_loadu_ps(mask(n), p) }
        }
        #[inline(always)]
        unsafe fn store_part(p: *mut f32, v: __m512, n: usize) {
            // SAFETY: as above; lanes outside of the mask are not written.
            unsafe { _mm512_mask_storeu_ps(p, mask(n), v) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: as above.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            // SAFETY: as above.
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            // SAFETY: as above.
            unsafe { _mm512_add_ps(a, b) }
        }
    }

    pub(super) struct Avx2;

    static LANE_MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

    #[inline(always)]
    unsafe fn mask8(n: usize) -> __m256i {
        // SAFETY: n is 0 to 8, so the eight integers read lie inside the table.
        unsafe { _mm256_loadu_si256(LANE_MASKS.as_ptr().add(8 - n).cast()) }
    }

    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;
        #[inline(always)]
        unsafe fn splat(x: f32) -> __m256 {
            // SAFETY: only instantiated where AVX2 and FMA were detected; likewise below.
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m256 {
            // SAFETY: as above; the caller vouches for the pointer.
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> __m256 {
            // SAFETY: as above; lanes outside of the mask are not read.
            unsafe { _mm256_maskload_ps(p, mask8(n)) }
        }
        #[inline(always)]
        unsafe fn store_part(p: *mut f32, v: __m256, n: usize) {
            // SAFETY: as above; lanes outside of the mask are not written.
            unsafe { _mm256_maskstore_ps(p, mask8(n), v) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: as above.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m256, b: __m256) -> __m256 {
            // SAFETY: as above.
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            // SAFETY: as above.
            unsafe { _mm256_add_ps(a, b) }
        }
    }
}
#[cfg(target_arch = "x86_64")]
use x86::{Avx2, Avx512};

/// Four lanes that any compiler can map to vectors.
struct Portable;

impl Simd for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 4] {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 4] {
        // SAFETY: the caller vouches for the pointer.
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> [f32; 4] {
        let mut v = [0.0; 4];
        // SAFETY: the caller vouches for n elements; n is at most 4.
        unsafe { std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n) };
        v
    }
    #[inline(always)]
    unsafe fn store_part(p: *mut f32, v: [f32; 4], n: usize) {
        // SAFETY: the caller vouches for n elements; n is at most 4.
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), p, n) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| {
            // Where the hardware has no fused multiply-add, `mul_add` would be a slow library call.
            if cfg!(target_arch = "aarch64") { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] }
        })
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] + b[i])
    }
}

#[cfg(target_arch = "x86_64")]
kernel!(avx512, Avx512, 4, [1, 2, 3, 4], #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]);
#[cfg(target_arch = "x86_64")]
kernel!(avx2, Avx2, 2, [1, 2], #[target_feature(enable = "avx2,fma")]);
kernel!(portable, Portable, 2, [1, 2],);

impl Panel<'_> {
    /// Computes the panel with the best kernel of this CPU.
    ///
    /// # Safety
    /// Every element that `rows`, `cols`, the strides and each term's `k` reach must be readable (`a`, `b`, a non-null
    /// `add`) or writable (`c`), and no other thread may touch those of `c` meanwhile.
    pub(crate) unsafe fn compute(&self) {
        // SAFETY: the caller's promise; the level was detected.
        unsafe {
            match super::simd::level() {
                #[cfg(target_arch = "x86_64")]
                super::simd::Level::Avx512 => avx512::panel(self),
                #[cfg(target_arch = "x86_64")]
                super::simd::Level::Avx2 => avx2::panel(self),
                _ => portable::panel(self),
            }
        }
    }

    /// As [`Panel::compute`], with the named kernel, for tests of each.
    #[cfg(test)]
    pub(crate) unsafe fn compute_at(&self, level: super::simd::Level) {
        // SAFETY: the caller's promise.
        unsafe {
            match level {
                #[cfg(target_arch = "x86_64")]
                super::simd::Level::Avx512 => avx512::panel(self),
                #[cfg(target_arch = "x86_64")]
                super::simd::Level::Avx2 => avx2::panel(self),
                _ => portable::panel(self),
            }
        }
    }
}
