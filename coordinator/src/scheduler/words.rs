//! Numbers for names that many jobs and workers share, so that a decision compares numbers and not texts.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hash, Hasher},
    sync::Arc,
};

/// A map that is quick where an attacker cannot choose many keys: its keys are addresses and numbers of our own.
pub(super) type QuickMap<K, V> = HashMap<K, V, BuildHasherDefault<Quick>>;

/// Multiplies and folds what it is given.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    fn write_u64(&mut self, n: u64) {
        let product = u128::from(self.0.rotate_left(5) ^ n) * 0x9e37_79b9_7f4a_7c15_u128;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Numbers the different values that it is shown, from 0. One that is shared by [`Arc`] is compared once.
#[derive(Debug)]
pub(super) struct Words<'a, T: ?Sized> {
    by_address: QuickMap<*const (), u32>,
    by_value: HashMap<&'a T, u32>,
}

impl<'a, T: ?Sized + Hash + Eq> Words<'a, T> {
    /// None yet.
    pub(super) fn new() -> Self {
        Self { by_address: QuickMap::default(), by_value: HashMap::new() }
    }

    /// The value's number; new when it was not seen before.
    pub(super) fn number(&mut self, value: &'a Arc<T>) -> u32 {
        let address = Arc::as_ptr(value).cast::<()>();
        if let Some(number) = self.by_address.get(&address) {
            return *number;
        }
        let next = u32::try_from(self.by_value.len()).unwrap_or(u32::MAX);
        let number = *self.by_value.entry(value).or_insert(next);
        self.by_address.insert(address, number);
        number
    }

    /// The value's number, if it was seen.
    pub(super) fn find(&self, value: &T) -> Option<u32> {
        self.by_value.get(value).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_have_one_number() {
        let (a, same, b): (Arc<str>, Arc<str>, Arc<str>) = ("a".into(), "a".into(), "b".into());
        let mut words = Words::new();
        assert_eq!([&a, &b, &same, &a].map(|word| words.number(word)), [0, 1, 0, 0]);
        assert_eq!((words.find("b"), words.find("c")), (Some(1), None));
    }
}
