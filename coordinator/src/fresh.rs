//! What was read from the database a moment ago, so that each call need not read it again.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Entries that are kept; beyond that all are read anew.
const MAX: usize = 10_000;

/// Values by their keys, each for a short time.
#[derive(Debug)]
pub struct Fresh<K, V> {
    kept: Mutex<HashMap<K, (Instant, V)>>,
    keep: Duration,
}

impl<K: Eq + Hash, V: Clone> Fresh<K, V> {
    /// Keeps each value for so long: a change by another coordinator is seen after that time at the latest.
    pub fn new(keep: Duration) -> Self {
        Self { kept: Mutex::default(), keep }
    }

    /// What was put, unless that was too long ago.
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q, now: Instant) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
    {
        let (put, value) = self.lock().get(key)?.clone();
        (now.saturating_duration_since(put) < self.keep).then_some(value)
    }

    /// Keeps a value for which the database was asked at `now`.
    pub fn put(&self, key: K, value: V, now: Instant) {
        let mut kept = self.lock();
        if kept.len() >= MAX {
            kept.clear();
        }
        kept.insert(key, (now, value));
    }

    /// This process has changed something: all is read anew.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, (Instant, V)>> {
        // A map is whole after any panic between its calls.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_for_their_time_only() {
        let (fresh, start) = (Fresh::new(Duration::from_secs(3)), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        fresh.put("a", 1, start);
        assert_eq!((fresh.get("a", after(2)), fresh.get("b", after(2))), (Some(1), None));
        assert_eq!(fresh.get("a", after(3)), None);
        fresh.put("a", 2, after(3));
        fresh.clear();
        assert_eq!(fresh.get("a", after(3)), None);
    }
}
