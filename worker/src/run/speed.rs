//! The job's speed as its points tell it: a mean over the last steps.

use std::{collections::VecDeque, time::Duration};

/// Speed is the mean over so many steps.
const STEPS: usize = 20;

/// Tokens and seconds of the last steps.
#[derive(Default)]
pub(super) struct Speed(VecDeque<(u64, f64)>);

impl Speed {
    /// One more step.
    pub fn add(&mut self, tokens: u64, took: Duration) {
        if self.0.len() == STEPS {
            self.0.pop_front();
        }
        self.0.push_back((tokens, took.as_secs_f64()));
    }

    fn seconds(&self) -> f64 {
        self.0.iter().map(|(_, seconds)| seconds).sum()
    }

    /// Over the whole gang.
    pub fn tokens_per_second(&self) -> f64 {
        let tokens: u64 = self.0.iter().map(|(tokens, _)| tokens).sum();
        tokens as f64 / self.seconds().max(1e-9)
    }

    /// 0 before the first step.
    pub fn seconds_per_step(&self) -> f64 {
        self.seconds() / self.0.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_the_mean_of_the_last_steps() {
        let mut speed = Speed::default();
        assert_eq!(speed.seconds_per_step(), 0.0);
        speed.add(1_000_000, Duration::from_secs(1));
        (0..STEPS).for_each(|_| speed.add(100, Duration::from_secs(2)));
        assert_eq!((speed.tokens_per_second(), speed.seconds_per_step()), (50.0, 2.0));
    }
}
