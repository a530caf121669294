//! Rotary position embedding (arXiv:2104.09864), in place: pair (i, i + D/2) of each head turns by position · θ^(-2i/D).

mod frequencies;

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;
use lorafleet_spec::base::{Rope, RopeScaling};

use frequencies::{Frequencies, frequencies};

use super::simd::vectorized;
use super::{OpError, for_rows, into_vec, matrix};

const OP: &str = "rope";

/// Cosines and sines of positions `0..len`, `[len, D/2]` each, times the attention factor.
#[derive(Debug)]
pub(crate) struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl RopeTable {
    /// Angles as transformers makes them: f32 frequencies times f32 positions.
    pub fn new(frequencies: &Frequencies, len: usize) -> Self {
        let Frequencies { values, attention_factor: factor } = frequencies;
        let angles = (0..len).flat_map(|p| values.iter().map(move |f| f64::from(p as f32 * f)));
        let turn = |a: f64| (libm::cos(a) as f32 * factor, libm::sin(a) as f32 * factor);
        let (cos, sin) = angles.map(turn).unzip();
        Self { cos, sin, half: values.len() }
    }

    /// Positions that the table covers.
    pub fn len(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }
}

/// The rotations of a base, one table for each kind of its layers; made when needed, and kept.
#[derive(Debug)]
pub(crate) struct Ropes {
    ropes: Vec<Rope>,
    dims: usize,
    tables: Mutex<Vec<Arc<RopeTable>>>,
}

impl Ropes {
    /// For heads of which the first `dims` values are rotated (all of them, in most families).
    pub fn new(ropes: Vec<Rope>, dims: usize) -> Self {
        let tables = ropes.iter().map(|rope| RopeTable::new(&frequencies(rope, dims, 0), 0));
        let tables = Mutex::new(tables.map(Arc::new).collect());
        Self { ropes, dims, tables }
    }

    /// One table for each rope, for a pass whose longest sequence has `longest` tokens.
    pub fn tables(&self, longest: usize) -> Vec<Arc<RopeTable>> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let one = |(rope, kept): (&Rope, &mut Arc<RopeTable>)| {
            if let RopeScaling::Dynamic { original_max_positions, .. } = rope.scaling
                && longest as f64 > original_max_positions
            {
                // Its angles hold for this length only.
                return Arc::new(RopeTable::new(&frequencies(rope, self.dims, longest), longest));
            }
            if kept.len() < longest {
                let len = longest.next_power_of_two();
                *kept = Arc::new(RopeTable::new(&frequencies(rope, self.dims, 0), len));
            }
            Arc::clone(kept)
        };
        self.ropes.iter().zip(tables.iter_mut()).map(one).collect()
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

/// Turns every head of `x` `[T, heads·D]` by its token's position; a table for fewer than D values leaves the rest.
pub(crate) fn rotate(
    x: Tensor,
    head_dim: usize,
    positions: &[u32],
    table: &RopeTable,
    turn: Turn,
) -> Result<Tensor, OpError> {
    let columns = x.dim(1)?;
    assert!(2 * table.half <= head_dim, "rotated values of a head");
    let mut x = into_vec(OP, x)?;
    for_rows(&mut x, columns, |first, rows| {
        for (row, &position) in rows.chunks_exact_mut(columns).zip(&positions[first..]) {
            let at = position as usize * table.half;
            let (cos, sin) = (&table.cos[at..at + table.half], &table.sin[at..at + table.half]);
            rotate_row(row, head_dim, cos, sin, if turn == Turn::Forward { 1.0 } else { -1.0 });
        }
    });
    matrix(x, columns)
}

vectorized! {
    fn rotate_row(row: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        for head in row.chunks_exact_mut(head_dim) {
            let (low, high) = head[..2 * half].split_at_mut(half);
            for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                let sin = sin * sign;
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{check_gradient, close, noise, same_on_threads, values, weigh};

    const HEADS: usize = 3;

    fn table(attention_factor: f32) -> RopeTable {
        RopeTable::new(&Frequencies { values: vec![1.0, 0.3, 0.1, 0.03], attention_factor }, 20)
    }

    #[test]
    fn turns_and_turns_back() {
        let (t, dim) = (50, 8);
        let positions: Vec<u32> = (0..t as u32).map(|i| i % 20).collect();
        let (x, table) = (noise(t * HEADS * dim, 15), table(1.0));
        let turn = |x: &[f32], turn| {
            values(&rotate(matrix(x.to_vec(), HEADS * dim).unwrap(), dim, &positions, &table, turn).unwrap())
        };
        let turned = same_on_threads(|| turn(&x, Turn::Forward));
        assert_eq!(turned[..HEADS * dim], x[..HEADS * dim], "position 0 stays");
        let (a, b) = (x[HEADS * dim], x[HEADS * dim + dim / 2]);
        assert!((turned[HEADS * dim] - (a * 1f32.cos() - b * 1f32.sin())).abs() < 1e-6);
        close(&turn(&turned, Turn::Back), &x, 1e-5);
    }

    #[test]
    fn gradient_of_a_part_of_a_head() {
        let (t, dim) = (30, 12);
        let positions: Vec<u32> = (0..t as u32).map(|i| i % 20).collect();
        let (x, dy, table) = (noise(t * HEADS * dim, 1), noise(t * HEADS * dim, 2), table(1.3));
        let turn = |x: &[f32], turn| {
            values(&rotate(matrix(x.to_vec(), HEADS * dim).unwrap(), dim, &positions, &table, turn).unwrap())
        };
        let forward = turn(&x, Turn::Forward);
        for (x, y) in x.chunks(dim).zip(forward.chunks(dim)) {
            assert_eq!(x[8..], y[8..], "the rest of the head stays");
        }
        let d = same_on_threads(|| turn(&dy, Turn::Back));
        check_gradient("x", &x, &d, |x| weigh(&turn(x, Turn::Forward), &dy));
    }

    #[test]
    fn tables_grow_and_dynamic_ones_follow_the_length() {
        let plain = Rope { theta: 1e4, scaling: RopeScaling::None };
        let scaling = RopeScaling::Dynamic { factor: 2.0, original_max_positions: 32.0 };
        let ropes = Ropes::new(vec![plain, Rope { theta: 1e4, scaling }], 8);
        let short = ropes.tables(20);
        assert!(short.iter().all(|t| t.len() == 32));
        assert_eq!(short[0].cos, short[1].cos, "not stretched yet");
        let long = ropes.tables(40);
        assert!(long.iter().all(|t| t.len() >= 40));
        assert_ne!(long[0].sin[39 * 4..40 * 4], long[1].sin[39 * 4..40 * 4]);
        let again = ropes.tables(20);
        assert_eq!(again[1].cos, short[1].cos, "and not stretched any more");
    }
}
