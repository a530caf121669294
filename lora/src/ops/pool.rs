//! Recycled buffers, so that a step neither allocates, nor zero-fills, nor touches fresh pages.

use std::sync::{Mutex, PoisonError};

use candle_core::Tensor;

use super::{OpError, into_vec};

/// Buffers that are kept at most: above the number that one training pass has in flight at once.
const MOST_BUFFERS: usize = 1024;

/// Free buffers of earlier passes. Its size is bounded by the greatest that one pass had in use.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Vec<Vec<f32>>>);

impl Pool {
    /// A buffer of `len` values **left over from earlier use**: the caller writes every one of them.
    pub fn take(&self, len: usize) -> Vec<f32> {
        let mut buffer = {
            let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Kept sorted by capacity: the smallest that fits.
            let at = free.partition_point(|b| b.capacity() < len);
            match free.get(at) {
                // A buffer far too big stays for those who need it.
                Some(b) if b.capacity() <= 4 * len + 4096 => free.remove(at),
                _ => Vec::with_capacity(len + len / 4),
            }
        };
        buffer.resize(len, 0.0);
        buffer
    }

    /// Gives a buffer back.
    pub fn put(&self, buffer: Vec<f32>) {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() >= MOST_BUFFERS || buffer.capacity() == 0 {
            return;
        }
        let at = free.partition_point(|b| b.capacity() < buffer.capacity());
        free.insert(at, buffer);
    }

    /// Gives a tensor's buffer back; nobody else may hold the tensor.
    pub fn recycle(&self, tensor: Tensor) -> Result<(), OpError> {
        self.put(into_vec("recycle", tensor)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back() {
        let pool = Pool::default();
        let a = pool.take(100);
        let address = a.as_ptr();
        pool.put(a);
        let b = pool.take(90);
        assert_eq!((b.as_ptr(), b.len()), (address, 90));
        let c = pool.take(10_000);
        pool.put(c);
        assert_eq!(pool.take(1).len(), 1, "and the big one is not wasted on it");
        assert!(pool.take(9_000).capacity() >= 10_000);
    }

    #[test]
    fn a_tensors_buffer_is_recycled() {
        let pool = Pool::default();
        pool.recycle(super::super::matrix(vec![1.0; 64], 8).unwrap()).unwrap();
        assert!(pool.take(64).iter().all(|&x| x == 1.0));
    }
}
