//! tanh and erf for vector lanes: IEEE multiply, add and divide only, so the same bits on every CPU.
//!
//! Rational approximations in x² over a clamped range; the coefficients are Eigen's (`ptanh_float`, `perf_float`).

/// `tanh(x)`, within 4 units in the last place; NaN stays NaN.
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub(crate) fn tanh(x: f32) -> f32 {
    /// From here on the result is 1 in f32.
    const LIMIT: f32 = 7.905_311_1;
    /// Below, tanh(x) is x in f32.
    const TINY: f32 = 4e-4;
    let c = clamp(x, LIMIT);
    let s = c * c;
    let mut p = -2.760_768_477_423_55e-16;
    p = p * s + 2.000_187_904_824_77e-13;
    p = p * s + -8.604_671_522_137_35e-11;
    p = p * s + 5.122_297_090_371_14e-08;
    p = p * s + 1.485_722_357_179_79e-05;
    p = p * s + 6.372_619_288_754_36e-04;
    p = p * s + 4.893_524_558_917_86e-03;
    let mut q = 1.198_258_394_667_02e-06;
    q = q * s + 1.185_347_056_866_54e-04;
    q = q * s + 2.268_434_632_439_00e-03;
    q = q * s + 4.893_525_185_543_85e-03;
    let y = c * p / q;
    if x.abs() < TINY { x } else { y }
}

/// The error function `2/√π · ∫₀ˣ exp(-t²) dt`, within 5e-7; NaN stays NaN.
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub(crate) fn erf(x: f32) -> f32 {
    /// From here on the result is 1 in f32.
    const LIMIT: f32 = 4.0;
    let c = clamp(x, LIMIT);
    let s = c * c;
    let mut p = -2.726_142_258_013_06e-10;
    p = p * s + 2.770_681_424_959_02e-08;
    p = p * s + -2.101_024_020_825_08e-06;
    p = p * s + -5.692_506_394_623_46e-05;
    p = p * s + -7.349_906_303_268_55e-04;
    p = p * s + -2.954_599_808_540_25e-03;
    p = p * s + -1.609_603_332_624_15e-02;
    let mut q = -1.456_607_184_649_96e-05;
    q = q * s + -2.133_740_552_789_05e-04;
    q = q * s + -1.682_826_974_382_03e-03;
    q = q * s + -7.373_329_167_204_68e-03;
    q = q * s + -1.426_473_905_141_89e-02;
    c * p / q
}

/// `x` within ±limit; NaN stays NaN.
#[inline(always)]
fn clamp(x: f32, limit: f32) -> f32 {
    let x = if x > limit { limit } else { x };
    if x < -limit { -limit } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_as_near_as_they_say() {
        let (mut worst_tanh, mut worst_erf) = (0f64, 0f64);
        for i in -1_000_000..1_000_000 {
            let x = i as f32 * 1.03e-5;
            let wide = f64::from(x);
            let want = libm::tanh(wide);
            let ulp = f64::from((want.abs() as f32).max(f32::MIN_POSITIVE)) * f64::from(f32::EPSILON);
            worst_tanh = worst_tanh.max((f64::from(tanh(x)) - want).abs() / ulp);
            worst_erf = worst_erf.max((f64::from(erf(x)) - libm::erf(wide)).abs());
        }
        assert!(worst_tanh < 4.0, "tanh: {worst_tanh} ulps");
        assert!(worst_erf < 5e-7, "erf: {worst_erf}");
    }

    #[test]
    fn edges() {
        assert_eq!((tanh(0.0), erf(0.0)), (0.0, 0.0));
        assert_eq!((tanh(f32::INFINITY), tanh(-1e9)), (1.0, -1.0));
        assert!((erf(f32::INFINITY) - 1.0).abs() < 1e-6 && (erf(-1e9) + 1.0).abs() < 1e-6);
        assert!(tanh(f32::NAN).is_nan() && erf(f32::NAN).is_nan());
    }
}
