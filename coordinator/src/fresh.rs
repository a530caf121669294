//! What was read from the database a moment ago, so that each call need not read it again.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

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
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
    {
        let (put, value) = self.lock().get(key)?.clone();
        (put.elapsed() < self.keep).then_some(value)
    }

    /// Keeps a value that was read just now.
    pub fn put(&self, key: K, value: V) {
        let mut kept = self.lock();
        if kept.len() >= MAX {
            kept.clear();
        }
        kept.insert(key, (Instant::now(), value));
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

    #[tokio::test(start_paused = true)]
    async fn values_are_kept_for_their_time_only() {
        let fresh = Fresh::new(Duration::from_secs(3));
        fresh.put("a", 1);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!((fresh.get("a"), fresh.get("b")), (Some(1), None));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(fresh.get("a"), None);
    }
}
