//! How long a job waits before it is tried again after a failure of its own that may heal.

use std::time::Duration;

/// Before the first retry, on average.
const FIRST: Duration = Duration::from_secs(5);
/// Before any, on average.
const LONGEST: Duration = Duration::from_secs(600);

/// The pause before retry number `retry`, from 1: it doubles, and `draw`, from 0 to below 1, spreads it from half to one
/// and a half times that, so that jobs that failed together do not come back together.
pub fn pause(retry: u32, draw: f64) -> Duration {
    let doubled = FIRST.saturating_mul(2_u32.saturating_pow(retry.saturating_sub(1)));
    doubled.min(LONGEST).mul_f64(0.5 + draw.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pauses_grow_and_stay_within_their_bounds(retry in 1_u32..1000, draw in 0.0..1.0_f64) {
            let now = pause(retry, draw);
            prop_assert!(now >= FIRST / 2 && now <= LONGEST * 3 / 2);
            prop_assert!(pause(retry + 1, draw) >= now);
        }
    }

    #[test]
    fn the_first_pauses_double() {
        assert_eq!([1, 2, 3].map(|retry| pause(retry, 0.5).as_secs()), [5, 10, 20]);
    }
}
