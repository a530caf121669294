//! Rounding to bf16, two values to a 32-bit word: the form in which the kernel multiplies pairs.

use super::simd::vectorized;

/// Words of a row of `len` values.
pub(crate) const fn words(len: usize) -> usize {
    len.div_ceil(2)
}

/// The nearest bf16, ties to even, as bits; subnormal numbers become zero, as the bf16 instructions take them.
#[inline(always)]
pub(crate) fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    let size = bits & 0x7fff_ffff;
    let value = if size > 0x7f80_0000 { quiet } else { rounded };
    (if size < 0x0080_0000 { (bits >> 16) & 0x8000 } else { value }) as u16
}

/// A bf16's value.
pub(crate) fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The 16-bit halves of words, in memory's order.
pub(crate) fn halves(words: &mut [f32]) -> &mut [u16] {
    let len = 2 * words.len();
    // SAFETY: the same memory; u16 has no invalid values and a smaller alignment.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), len) }
}

vectorized! {
    fn round_all(values: &[f32], out: &mut [u16]) {
        for (out, &x) in out.iter_mut().zip(values) {
            *out = round(x);
        }
    }
}

/// Rounds a row into its words; where its length is odd, the last half is zero.
pub(crate) fn round_row(row: &[f32], out: &mut [f32]) {
    assert_eq!(out.len(), words(row.len()), "words of a row");
    let out = halves(out);
    round_all(row, out);
    out[row.len()..].fill(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_as_the_half_crate_but_flushes_subnormals() {
        let mut bits = 1u32;
        for _ in 0..200_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = f32::from_bits(bits);
            let want = if x.is_subnormal() { 0f32.copysign(x) } else { half::bf16::from_f32(x).to_f32() };
            let got = widen(round(x));
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{x}: {got}, {want}");
        }
        assert_eq!(widen(round(f32::INFINITY)), f32::INFINITY);
        assert_eq!(widen(round(f32::MAX)), f32::INFINITY);
    }

    #[test]
    fn an_odd_row_ends_with_zero() {
        let mut out = [f32::NAN; 2];
        round_row(&[1.0, -2.0, 3.0], &mut out);
        assert_eq!(halves(&mut out).to_vec(), [round(1.0), round(-2.0), round(3.0), 0]);
    }
}
