//! Rotary position embedding (arXiv:2104.09864), in place: pair (i, i + D/2) of each head turns by position · θ^(-2i/D).

use candle_core::Tensor;
use lorafleet_spec::base::{Rope, RopeScaling};

use super::simd::vectorized;
use super::{OpError, for_rows, into_vec, matrix};

const OP: &str = "rope";

/// Cosines and sines of positions `0..len`, `[len, D/2]` each.
#[derive(Debug)]
pub(crate) struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl RopeTable {
    /// Angles as transformers makes them: f32 frequencies times f32 positions.
    pub fn new(frequencies: &[f32], len: usize) -> Self {
        let angles = (0..len).flat_map(|p| frequencies.iter().map(move |f| f64::from(p as f32 * f)));
        let (cos, sin) = angles.map(|a| (libm::cos(a) as f32, libm::sin(a) as f32)).unzip();
        Self { cos, sin, half: frequencies.len() }
    }

    /// Positions that the table covers.
    pub fn len(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }
}

/// Which way to turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The forward pass.
    Forward,
    /// The backward pass: the transpose of a rotation is the rotation by the negative angle.
    Back,
}

/// Frequencies `θ^(-2i/D)` for a head dimension D, stretched as the base says, in f32 as transformers makes them.
pub(crate) fn frequencies(rope: &Rope, head_dim: usize) -> Vec<f32> {
    let plain = (0..head_dim / 2).map(|i| {
        let exponent = f64::from(2.0 * i as f32 / head_dim as f32);
        1.0 / libm::pow(f64::from(rope.theta as f32), exponent) as f32
    });
    plain.map(|frequency| stretch(frequency, &rope.scaling)).collect()
}

fn stretch(frequency: f32, scaling: &RopeScaling) -> f32 {
    match *scaling {
        RopeScaling::None | RopeScaling::Dynamic { .. } | RopeScaling::Yarn { .. } => frequency,
        RopeScaling::Linear { factor } => (f64::from(frequency) / factor) as f32,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let plain = f64::from(frequency);
            let turns = original_max_positions * plain / (2.0 * std::f64::consts::PI);
            let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
            ((1.0 - kept) * plain / factor + kept * plain) as f32
        }
    }
}

/// Turns every head of `x` `[T, heads·D]` by its token's position.
pub(crate) fn rotate(x: Tensor, positions: &[u32], table: &RopeTable, turn: Turn) -> Result<Tensor, OpError> {
    let columns = x.dim(1)?;
    let mut x = into_vec(OP, x)?;
    for_rows(&mut x, columns, |first, rows| {
        for (row, &position) in rows.chunks_exact_mut(columns).zip(&positions[first..]) {
            let at = position as usize * table.half;
            let (cos, sin) = (&table.cos[at..at + table.half], &table.sin[at..at + table.half]);
            rotate_row(row, cos, sin, if turn == Turn::Forward { 1.0 } else { -1.0 });
        }
    });
    matrix(x, columns)
}

vectorized! {
    fn rotate_row(row: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        for head in row.chunks_exact_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                let sin = sin * sign;
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}
