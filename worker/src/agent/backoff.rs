//! The one pause between tries: doubling, with jitter, up to a longest one.

use std::time::Duration;

/// Pauses between tries at the same thing.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses of about `first`, then twice that, and so on up to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The next pause: between half of its nominal length and the whole, so that a fleet does not move as one.
    pub fn pause(&mut self) -> Duration {
        let nominal = self.next.min(self.longest);
        self.next = (nominal * 2).min(self.longest);
        nominal.mul_f64(0.5 + 0.5 * jitter())
    }

    /// What was tried worked: starts over.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A random number in [0, 1).
fn jitter() -> f64 {
    let bits = uuid::Uuid::new_v4().as_u64_pair().1 & 0xffff_ffff;
    bits as f64 / f64::from(u32::MAX).next_up()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for nominal in [100, 200, 400, 800, 1000, 1000] {
            let pause = backoff.pause().as_millis();
            assert!((nominal / 2..=nominal).contains(&pause), "{pause} of {nominal}");
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(100));
    }
}
