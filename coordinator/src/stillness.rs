//! Which counters stand still, judged by one's own monotonic clock: how leases end without comparing timestamps.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// Counters under watch.
#[derive(Debug)]
pub struct Stillness<K> {
    seen: HashMap<K, (i64, Instant)>,
}

impl<K: Copy + Eq + Hash> Default for Stillness<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Copy + Eq + Hash> Stillness<K> {
    /// Watches nothing yet.
    pub fn new() -> Self {
        Self { seen: HashMap::new() }
    }

    /// Takes note of all counters as they are at `now`; tells for how long each was watched standing still. A counter
    /// that is not among them any more is forgotten.
    pub fn observe(&mut self, now: Instant, counters: &[(K, i64)]) -> HashMap<K, Duration> {
        let mut next = HashMap::with_capacity(counters.len());
        for (key, counter) in counters {
            let since = match self.seen.get(key) {
                Some((before, since)) if before == counter => *since,
                _ => now,
            };
            next.insert(*key, (*counter, since));
        }
        self.seen = next;
        self.seen.iter().map(|(key, (_, since))| (*key, now.duration_since(*since))).collect()
    }

    /// Forgets everything: the watch begins anew, because for a while nothing could be seen.
    pub fn reset(&mut self) {
        self.seen.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_was_watched_counts() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut watch = Stillness::new();
        let mut still = |s, counters: &[(&'static str, i64)]| {
            let still = watch.observe(at(s), counters);
            (still["a"].as_secs(), still["b"].as_secs())
        };
        assert_eq!(still(0, &[("a", 7), ("b", 1)]), (0, 0));
        assert_eq!(still(10, &[("a", 7), ("b", 2)]), (10, 0));
        assert_eq!(still(15, &[("a", 7), ("b", 2)]), (15, 5));
        watch.reset();
        assert_eq!(watch.observe(at(100), &[("a", 7)])["a"], Duration::ZERO, "a new watch, a new lease");
    }

    proptest! {
        /// Whatever the course of observations: a counter was seen with its value for as long as it is called still.
        #[test]
        fn stillness_is_the_time_since_the_value_was_first_seen(steps in prop::collection::vec((0u64..8, 0i64..3), 1..40)) {
            let mut watch = Stillness::new();
            let (mut now, mut history) = (Instant::now(), Vec::new());
            for (seconds, counter) in steps {
                now += Duration::from_secs(seconds);
                history.push((now, counter));
                let still = watch.observe(now, &[(0u8, counter)])[&0];
                let since = history.iter().rev().take_while(|(_, c)| *c == counter).last().expect("just pushed").0;
                prop_assert_eq!(still, now.duration_since(since));
            }
        }
    }
}
