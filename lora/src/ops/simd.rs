//! Element-wise kernels compiled for each instruction set of the CPU, with the same bits on all of them.

/// Defines a function whose body is compiled for AVX-512, for AVX2 and for the baseline, and chosen at run time.
///
/// The body may use `+`, `-`, `*`, `/` and `sqrt` on lanes: Rust never contracts `a * b + c`, so the bits do not
/// depend on the choice. It must not contain closures that are not inlined.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn wide($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }

                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn middle($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }

                match $crate::ops::simd::level() {
                    // SAFETY: the CPU was seen to have these features.
                    $crate::ops::simd::Level::Avx512 => return unsafe { wide($($arg),*) },
                    // SAFETY: the CPU was seen to have these features.
                    $crate::ops::simd::Level::Avx2 => return unsafe { middle($($arg),*) },
                    $crate::ops::simd::Level::Baseline => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use vectorized;

/// Instruction sets that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// 512-bit vectors.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Avx512,
    /// 256-bit vectors with fused multiply-add.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Avx2,
    /// What the compiler's target promises.
    Baseline,
}

/// The best level that this CPU has.
#[inline]
pub(crate) fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            return Level::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Level::Avx2;
        }
    }
    Level::Baseline
}

/// Lanes of every reduction: partial sums are kept in this many lanes and then added as a tree, on every CPU.
pub(crate) const LANES: usize = 16;

/// Adds the lanes as a tree, in one fixed order.
#[inline(always)]
pub(crate) fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `Σ f(x)`, lane by lane.
#[inline(always)]
pub(crate) fn reduce(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for x in chunks {
        for (sum, x) in lanes.iter_mut().zip(x) {
            *sum += f(*x);
        }
    }
    for (sum, x) in lanes.iter_mut().zip(rest) {
        *sum += f(*x);
    }
    sum_lanes(lanes)
}

/// `Σ x·y`, lane by lane; the slices are equally long.
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in xs.iter().zip(ys) {
        for ((sum, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *sum += x * y;
        }
    }
    for ((sum, x), y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
        *sum += x * y;
    }
    sum_lanes(lanes)
}

/// `eˣ` within 2 units in the last place on normal results, by range reduction and a polynomial.
///
/// Below ln(2⁻¹²⁶) the result is 0; above 88.37 it stays at e^88.37; NaN stays NaN.
/// Only IEEE multiply, add and bit operations: the same bits on every CPU, and it vectorizes.
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOW: f32 = -87.336_54;
    const HIGH: f32 = 88.37;
    // 1.5·2²³: adding it rounds to the nearest integer, which then sits in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has few enough bits that n times it is exact.
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_40e-4;
    let clamped = if x > HIGH { HIGH } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    // Minimax polynomial of (eʳ - 1 - r) / r² on ±ln2/2 (Cephes, expf).
    let mut p = 1.987_569_15e-4;
    p = p * r + 1.398_199_950_7e-3;
    p = p * r + 8.333_451_907_3e-3;
    p = p * r + 4.166_579_589_4e-2;
    p = p * r + 1.666_666_545_9e-1;
    p = p * r + 5.000_000_120_1e-1;
    let y = p * (r * r) + r + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if clamped < LOW { 0.0 } else { y * scale }
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps(got: f32, want: f64) -> f64 {
        let near = want as f32;
        let ulp = f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near);
        ((f64::from(got) - want) / ulp).abs()
    }

    #[test]
    fn exp_is_within_two_ulps() {
        let mut worst = 0f64;
        let mut x = -87.3f32;
        while x < 88.3 {
            worst = worst.max(ulps(exp(x), f64::from(x).exp()));
            x += 1.713e-4;
        }
        assert!(worst <= 2.0, "{worst} ulps");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(1e30).is_finite() && exp(1e30) > 2e38);
        assert_eq!(sigmoid(-200.0), 1.0 / (1.0 + exp(200.0)));
        assert_eq!(sigmoid(200.0), 1.0);
    }

    vectorized! {
        fn exp_all(x: &mut [f32]) {
            for v in x {
                *v = exp(*v);
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_instruction_set() {
        let input: Vec<f32> = (0..10_007).map(|i| (i as f32 - 5000.0) * 0.017).collect();
        let mut wide = input.clone();
        exp_all(&mut wide);
        for (x, y) in input.iter().zip(&wide) {
            assert_eq!(exp(*x).to_bits(), y.to_bits(), "exp({x})");
        }
        let whole = reduce(&input, |x| x);
        assert!((whole - input.iter().sum::<f32>()).abs() < 1.0);
    }
}
