//! Draws of the shapes that loads have, by a seed alone.

use crate::chaos::random::Random;

/// A stream of draws.
#[derive(Clone, Debug)]
pub struct Draws(Random);

impl Draws {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(Random::new(seed))
    }

    /// A number from 0 up to 1, without 1.
    pub fn unit(&mut self) -> f64 {
        (self.0.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// A number below `n`, which is above 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.unit() * n as f64) as usize).min(n - 1)
    }

    /// Exponential, by its mean.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// Log-normal, by its median and the deviation of its logarithm.
    pub fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.unit()).cos();
        median * (sigma * normal).exp()
    }

    /// One of some things, each as likely as its weight is heavy; there must be one.
    pub fn weighted<'t, T>(&mut self, things: &'t [(T, f64)]) -> &'t T {
        let mut at = self.unit() * things.iter().map(|(_, weight)| weight).sum::<f64>();
        let found = things.iter().find(|(_, weight)| {
            at -= weight;
            at < 0.0
        });
        &found.or(things.last()).expect("nothing to choose from").0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_the_means_that_they_are_named_for() {
        let mut draws = Draws::new(1);
        let n = 20_000;
        let mean = |draw: &mut dyn FnMut() -> f64| (0..n).map(|_| draw()).sum::<f64>() / f64::from(n);
        let about = |value: f64, expected: f64| (value / expected - 1.0).abs() < 0.05;
        assert!(about(mean(&mut || draws.exponential(7.0)), 7.0));
        // The mean of a log-normal is its median times e to the half variance.
        assert!(about(mean(&mut || draws.log_normal(3.0, 0.5)), 3.0 * 0.125f64.exp()));
        assert!(about(mean(&mut || draws.below(5) as f64), 2.0));
        assert!(about(mean(&mut || *draws.weighted(&[(1.0, 3.0), (5.0, 1.0)])), 2.0));
    }
}
