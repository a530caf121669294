//! Counts floating-point operations where they are spent, so that a step's cost can be asserted.

use std::sync::atomic::{AtomicU64, Ordering};

/// Floating-point operations of matrix products; a multiply-add is two.
///
/// Each product adds its own cost when it runs. Element-wise passes are not counted: they cost memory traffic,
/// and no published account of a training step counts them either.
#[derive(Debug, Default)]
pub struct FlopCounter(AtomicU64);

impl FlopCounter {
    /// A counter at zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds a product of an `[m, k]` and a `[k, n]` matrix.
    pub fn product(&self, m: usize, n: usize, k: usize) {
        self.add(2 * (m * n * k) as u64);
    }

    /// Adds operations.
    pub fn add(&self, flops: u64) {
        self.0.fetch_add(flops, Ordering::Relaxed);
    }

    /// Operations counted since the last reset.
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Starts again from zero; returns what was counted.
    pub fn reset(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_multiply_add_is_two() {
        let flops = FlopCounter::new();
        flops.product(2, 3, 5);
        flops.add(1);
        assert_eq!(flops.total(), 61);
        assert_eq!(flops.reset(), 61);
        assert_eq!(flops.total(), 0);
    }
}
