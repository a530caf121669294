//! Vector operations of each instruction set, as the kernel's tiles use them.

/// Vector operations of one instruction set.
pub(super) trait Simd {
    type V: Copy;
    const LANES: usize;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn load_part(p: *const f32, n: usize) -> Self::V;
    unsafe fn store_part(p: *mut f32, v: Self::V, n: usize);
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// Each 32-bit word of `a` and `b` is a pair of bf16: two multiply-adds into `c`, of the words' high halves first,
    /// then of the low ones; each is rounded to nearest even, and a subnormal result becomes zero. This is what
    /// AVX512-BF16's VDPBF16PS does.
    unsafe fn pairs(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    /// The upper half of a word.
    const HIGH_HALF: i32 = 0xffff_0000_u32 as i32;

    /// 512-bit vectors.
    pub(in super::super) struct Avx512;

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
        #[inline(always)]
        unsafe fn pairs(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: as above.
            unsafe {
                let high = |v| _mm512_and_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(HIGH_HALF));
                let low = |v| _mm512_slli_epi32::<16>(_mm512_castps_si512(v));
                let flush = |v| {
                    let tiny =
                        _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(v), _mm512_set1_ps(f32::MIN_POSITIVE));
                    _mm512_mask_and_ps(v, tiny, v, _mm512_set1_ps(-0.0))
                };
                let float = |v| _mm512_castsi512_ps(v);
                let c = flush(_mm512_fmadd_ps(float(high(a)), float(high(b)), c));
                flush(_mm512_fmadd_ps(float(low(a)), float(low(b)), c))
            }
        }
    }

    /// AVX-512 with its bf16 instructions.
    pub(in super::super) struct Avx512Bf16;

    impl Simd for Avx512Bf16 {
        type V = __m512;
        const LANES: usize = 16;
        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            // SAFETY: only instantiated where AVX512-BF16 was detected; likewise below.
            unsafe { Avx512::splat(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            // SAFETY: as above; the caller vouches for the pointer.
            unsafe { Avx512::load(p) }
        }
        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> __m512 {
            // SAFETY: as above.
            unsafe { Avx512::load_part(p, n) }
        }
        #[inline(always)]
        unsafe fn store_part(p: *mut f32, v: __m512, n: usize) {
            // SAFETY: as above.
            unsafe { Avx512::store_part(p, v, n) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: as above.
            unsafe { Avx512::mul_add(a, b, c) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            // SAFETY: as above.
            unsafe { Avx512::mul(a, b) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            // SAFETY: as above.
            unsafe { Avx512::add(a, b) }
        }
        #[inline(always)]
        unsafe fn pairs(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: as above; the types are the same 512 bits.
            unsafe {
                let words = |v| std::mem::transmute::<__m512, __m512bh>(v);
                _mm512_dpbf16_ps(c, words(a), words(b))
            }
        }
    }

    /// 256-bit vectors with fused multiply-add.
    pub(in super::super) struct Avx2;

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
        #[inline(always)]
        unsafe fn pairs(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: as above.
            unsafe {
                let high = |v| _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(HIGH_HALF)));
                let low = |v| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(v)));
                let flush = |v| {
                    let sign = _mm256_set1_ps(-0.0);
                    let size = _mm256_andnot_ps(sign, v);
                    let tiny = _mm256_cmp_ps::<_CMP_LT_OQ>(size, _mm256_set1_ps(f32::MIN_POSITIVE));
                    _mm256_blendv_ps(v, _mm256_and_ps(v, sign), tiny)
                };
                let c = flush(_mm256_fmadd_ps(high(a), high(b), c));
                flush(_mm256_fmadd_ps(low(a), low(b), c))
            }
        }
    }
}
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512, Avx512Bf16};

/// Four lanes that any compiler can map to vectors.
pub(super) struct Portable;

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
    #[inline(always)]
    unsafe fn pairs(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        let high = |x: f32| f32::from_bits(x.to_bits() & 0xffff_0000);
        let low = |x: f32| f32::from_bits(x.to_bits() << 16);
        let flush = |x: f32| if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x };
        std::array::from_fn(|i| {
            // A product of two bf16 is exact in f32, so nothing is lost by not fusing.
            let c = flush(high(a[i]) * high(b[i]) + c[i]);
            flush(low(a[i]) * low(b[i]) + c)
        })
    }
}
