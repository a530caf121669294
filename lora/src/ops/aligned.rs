//! Values that begin where a cache line begins, so that no vector that is loaded lies in two lines.

use std::ops::{Deref, DerefMut};

/// Values of a cache line.
const LINE: usize = 16;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// A buffer of values, in whole cache lines.
#[derive(Clone, Debug, Default)]
pub(crate) struct Aligned(Vec<Line>);

impl Aligned {
    /// So many zeros, rounded up to whole lines.
    pub fn zeros(len: usize) -> Self {
        Self(vec![Line([0.0; LINE]); len.div_ceil(LINE)])
    }

    /// Grows to at least that many values.
    pub fn reserve(&mut self, len: usize) {
        if self.0.len() * LINE < len {
            self.0.resize(len.div_ceil(LINE), Line([0.0; LINE]));
        }
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: lines are arrays of values without gaps.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LINE) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LINE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_with_a_line_and_keeps_what_it_holds() {
        let mut values = Aligned::zeros(17);
        assert_eq!((values.as_ptr() as usize % 64, values.len()), (0, 32));
        values[16] = 3.0;
        values.reserve(100);
        assert_eq!((values.as_ptr() as usize % 64, values[16]), (0, 3.0));
        assert!(values.len() >= 100);
    }
}
