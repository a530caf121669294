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

impl<K: Copy + Eq + Hash> Stillness<K> {
    /// Watches nothing yet.
    pub fn new() -> Self {
        Self { seen: HashMap::new() }
    }

    /// Takes note of all counters as they are at `now`; returns those that were watched standing still for at least
    /// `limit`. A counter that is not among them any more is forgotten.
    pub fn observe(&mut self, now: Instant, counters: &[(K, i64)], limit: Duration) -> Vec<(K, i64)> {
        let mut next = HashMap::with_capacity(counters.len());
        let mut still = Vec::new();
        for (key, counter) in counters {
            let since = match self.seen.get(key) {
                Some((before, since)) if before == counter => *since,
                _ => now,
            };
            if now.duration_since(since) >= limit {
                still.push((*key, *counter));
            }
            next.insert(*key, (*counter, since));
        }
        self.seen = next;
        still
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

    const LIMIT: Duration = Duration::from_secs(15);

    #[test]
    fn a_lease_ends_after_one_whole_lease_of_watching() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut watch = Stillness::new();
        assert!(watch.observe(at(0), &[("a", 7), ("b", 1)], LIMIT).is_empty());
        assert!(watch.observe(at(10), &[("a", 7), ("b", 2)], LIMIT).is_empty());
        assert_eq!(watch.observe(at(15), &[("a", 7), ("b", 2)], LIMIT), [("a", 7)]);
        watch.reset();
        assert!(watch.observe(at(100), &[("a", 7), ("b", 2)], LIMIT).is_empty(), "a new watch, a new lease");
    }

    proptest! {
        /// Whatever the course of observations: what is called still was seen with that value for the whole limit.
        #[test]
        fn only_the_still_are_called_still(steps in prop::collection::vec((0u64..8, 0i64..3), 1..40)) {
            let mut watch = Stillness::new();
            let (mut now, mut history) = (Instant::now(), Vec::new());
            for (seconds, counter) in steps {
                now += Duration::from_secs(seconds);
                history.push((now, counter));
                let still = !watch.observe(now, &[(0u8, counter)], LIMIT).is_empty();
                let since = history.iter().rev().take_while(|(_, c)| *c == counter).last().expect("just pushed").0;
                prop_assert_eq!(still, now.duration_since(since) >= LIMIT);
            }
        }
    }
}
