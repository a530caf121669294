//! Frequencies of rotary positions, stretched as a base says: what transformers' `modeling_rope_utils.py` computes, in f32.

use lorafleet_spec::base::{Rope, RopeScaling};
use std::f64::consts::PI;

/// What a table of rotations is made of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frequencies {
    /// Radians per position of each pair.
    pub values: Vec<f32>,
    /// What cosines and sines are multiplied by.
    pub attention_factor: f32,
}

/// Frequencies of `dims` rotated values of a head, for a batch whose longest sequence has `longest` tokens.
///
/// Only [`RopeScaling::Dynamic`] depends on `longest`.
pub(crate) fn frequencies(rope: &Rope, dims: usize, longest: usize) -> Frequencies {
    let powers = |theta: f32| (0..dims / 2).map(move |i| power(theta, i, dims));
    let plain = || powers(rope.theta as f32).map(|power| 1.0 / power);
    let (values, attention_factor): (Vec<f32>, f32) = match rope.scaling {
        RopeScaling::None => (plain().collect(), 1.0),
        RopeScaling::Linear { factor } => (plain().map(|f| f / factor as f32).collect(), 1.0),
        RopeScaling::Dynamic { factor, original_max_positions } => {
            let theta = dynamic_theta(rope.theta, factor, original_max_positions, dims, longest);
            (powers(theta).map(|power| 1.0 / power).collect(), 1.0)
        }
        RopeScaling::Yarn { .. } => yarn(rope, dims, powers(rope.theta as f32)),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let stretch = |frequency: f32| {
                let plain = f64::from(frequency);
                let turns = original_max_positions * plain / (2.0 * PI);
                let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                ((1.0 - kept) * plain / factor + kept * plain) as f32
            };
            (plain().map(stretch).collect(), 1.0)
        }
    };
    Frequencies { values, attention_factor }
}

/// θ^(2i/D).
fn power(theta: f32, i: usize, dims: usize) -> f32 {
    let exponent = f64::from(2.0 * i as f32 / dims as f32);
    libm::pow(f64::from(theta), exponent) as f32
}

/// θ of NTK scaling that follows the sequence's length.
fn dynamic_theta(theta: f64, factor: f64, positions: f64, dims: usize, longest: usize) -> f32 {
    let length = (longest as f64).max(positions);
    if length <= positions || dims <= 2 {
        return theta as f32;
    }
    let ratio = (factor as f32 * length as f32) / positions as f32 - (factor - 1.0) as f32;
    let exponent = dims as f64 / (dims - 2) as f64;
    theta as f32 * libm::pow(f64::from(ratio), exponent) as f32
}

/// YaRN (arXiv:2309.00071).
fn yarn(rope: &Rope, dims: usize, powers: impl Iterator<Item = f32>) -> (Vec<f32>, f32) {
    let RopeScaling::Yarn {
        factor,
        original_max_positions,
        attention_factor,
        beta_fast,
        beta_slow,
        mscale,
        mscale_all_dim,
        truncate,
    } = rope.scaling
    else {
        unreachable!("called for yarn");
    };
    // The pair that turns that often within the original positions.
    let pair = |turns: f64| {
        dims as f64 * libm::log(original_max_positions / (turns * 2.0 * PI)) / (2.0 * libm::log(rope.theta))
    };
    let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dims as f64 - 1.0));
    if low == high {
        high += 0.001;
    }
    let mix = |(i, power): (usize, f32)| {
        let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let kept = 1.0 - ramp;
        (1.0 / (factor as f32 * power)) * (1.0 - kept) + (1.0 / power) * kept
    };
    let values = powers.enumerate().map(mix).collect();
    let scale = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * libm::log(factor) + 1.0 };
    let inferred = match (mscale, mscale_all_dim) {
        (Some(over), Some(under)) if over != 0.0 && under != 0.0 => scale(over) / scale(under),
        _ => scale(1.0),
    };
    (values, attention_factor.unwrap_or(inferred) as f32)
}

#[cfg(test)]
#[allow(clippy::excessive_precision)] // As Python printed them.
mod tests {
    use super::*;

    fn check(rope: Rope, dims: usize, longest: usize, want: &[f32], attention_factor: f32) {
        let got = frequencies(&rope, dims, longest);
        assert_eq!(got.values.len(), want.len());
        for (i, (a, b)) in got.values.iter().zip(want).enumerate() {
            assert!((a - b).abs() <= 4e-7 * b.abs(), "{:?} [{i}]: {a} and {b}", rope.scaling);
        }
        assert!((got.attention_factor - attention_factor).abs() < 1e-6, "{}", got.attention_factor);
    }

    #[test]
    fn linear() {
        let scaling = RopeScaling::Linear { factor: 4.0 };
        let want = [
            2.500000000e-01,
            5.386086181e-02,
            1.160397101e-02,
            2.499999944e-03,
            5.386085832e-04,
            1.160397369e-04,
        ];
        check(Rope { theta: 10000.0, scaling }, 12, 0, &want, 1.0);
    }

    #[test]
    fn dynamic_of_a_short_sequence() {
        let scaling = RopeScaling::Dynamic { factor: 3.0, original_max_positions: 64.0 };
        let want = [
            1.000000000e+00,
            2.154434472e-01,
            4.641588405e-02,
            9.999999776e-03,
            2.154434333e-03,
            4.641589476e-04,
        ];
        check(Rope { theta: 10000.0, scaling }, 12, 50, &want, 1.0);
    }

    #[test]
    fn dynamic_of_a_long_sequence() {
        let scaling = RopeScaling::Dynamic { factor: 3.0, original_max_positions: 64.0 };
        let want = [
            1.000000000e+00,
            1.442881227e-01,
            2.081906237e-02,
            3.003943944e-03,
            4.334333353e-04,
            6.253931497e-05,
        ];
        check(Rope { theta: 10000.0, scaling }, 12, 201, &want, 1.0);
    }

    #[test]
    fn yarn() {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_max_positions: 4096.0,
            attention_factor: None,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: None,
            mscale_all_dim: None,
            truncate: true,
        };
        let want = [
            1.000000000e+00,
            3.162277639e-01,
            1.000000015e-01,
            2.569350600e-02,
            6.249999627e-03,
            1.383496565e-03,
            2.500000119e-04,
            7.905694656e-05,
        ];
        check(Rope { theta: 10000.0, scaling }, 16, 0, &want, 1.138629436111989);
    }

    #[test]
    fn yarn_with_all_its_options() {
        let scaling = RopeScaling::Yarn {
            factor: 8.0,
            original_max_positions: 512.0,
            attention_factor: None,
            beta_fast: 16.0,
            beta_slow: 2.0,
            mscale: Some(0.7),
            mscale_all_dim: Some(1.2),
            truncate: false,
        };
        let want = [
            1.000000000e+00,
            2.254180014e-01,
            2.191104367e-02,
            1.431778306e-03,
            3.227486159e-04,
            7.275334792e-05,
            1.639991387e-05,
            3.696835847e-06,
        ];
        check(Rope { theta: 150000.0, scaling }, 16, 0, &want, 0.9167912505456107);
    }

    #[test]
    fn yarn_with_its_own_attention_factor() {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_max_positions: 64.0,
            attention_factor: Some(1.5),
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: None,
            mscale_all_dim: None,
            truncate: true,
        };
        let want = [1.000000000e+00, 6.250000000e-02, 2.499999944e-03, 2.500000119e-04];
        check(Rope { theta: 10000.0, scaling }, 8, 0, &want, 1.5);
    }

    #[test]
    fn llama3() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192.0,
        };
        let want = [
            1.000000000e+00,
            1.939227581e-01,
            3.760603070e-02,
            7.292665076e-03,
            5.248460220e-04,
            3.428102355e-05,
            6.647869668e-06,
            1.289173156e-06,
        ];
        check(Rope { theta: 500000.0, scaling }, 16, 0, &want, 1.0);
    }
}
