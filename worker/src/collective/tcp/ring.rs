//! The ring's order of sends and receives, as arithmetic: who sends which segment when, and how numbers travel.
//!
//! Reduce-scatter, then all-gather (Patarasuk and Yuan, 2009), as one pipeline of 2(N−1) rounds: in round t member i
//! sends segment i−t and receives segment i−t−1; in the first N−1 rounds what arrives is added, later it replaces;
//! and what arrives in round t is what is sent in round t+1, chunk by chunk. So a member sends every segment twice
//! but i+1 and i+2, that is 2(N−1)/N of the buffer.

use std::ops::Range;

/// Chunks of a segment at most; also the bound of the queue before the sending thread. With room for one whole
/// segment in each member's queue the ring cannot block: a member that waits for room has received more chunks than
/// its successor, which cannot hold all the way around.
pub(super) const MAX_CHUNKS: usize = 64;
/// Smaller chunks cost more in calls than they gain by overlap.
const MIN_CHUNK_BYTES: usize = 64 * 1024;

/// How a buffer of `elements` is cut for a ring of `members`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    elements: usize,
    members: usize,
    chunk: usize,
}

impl Plan {
    /// `width`: bytes of an element.
    pub fn new(elements: usize, members: usize, width: usize) -> Self {
        let chunk = elements.div_ceil(members).div_ceil(MAX_CHUNKS).max(MIN_CHUNK_BYTES / width);
        Self { elements, members, chunk }
    }

    /// Rounds of the whole operation.
    pub fn rounds(&self) -> usize {
        2 * (self.members - 1)
    }

    /// Whether what arrives in `round` is added; otherwise it replaces.
    pub fn adds(&self, round: usize) -> bool {
        round + 1 < self.members
    }

    /// The segment that member `index` receives in `round`.
    pub fn received(&self, index: usize, round: usize) -> Range<usize> {
        // −t−1 modulo N, without going below 0: t is less than 2N.
        self.segment((index + 2 * self.members - round - 1) % self.members)
    }

    /// The segment that member `index` sends first, its own.
    pub fn first(&self, index: usize) -> Range<usize> {
        self.segment(index)
    }

    /// The parts of a segment that travel together.
    pub fn chunks(&self, segment: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let chunk = self.chunk;
        segment.clone().step_by(chunk).map(move |start| start..(start + chunk).min(segment.end))
    }

    fn segment(&self, k: usize) -> Range<usize> {
        let bound = |k: usize| (k as u128 * self.elements as u128 / self.members as u128) as usize;
        bound(k)..bound(k + 1)
    }
}

/// A number that a ring can sum. On the wire: little-endian.
pub(super) trait Element: Copy {
    /// Its size on the wire.
    const BYTES: usize;
    /// Appends the numbers' bytes.
    fn encode(numbers: &[Self], bytes: &mut Vec<u8>);
    /// Adds the numbers in `bytes`; false when a sum does not fit.
    fn add(numbers: &mut [Self], bytes: &[u8]) -> bool;
    /// Replaces the numbers by those in `bytes`.
    fn decode(numbers: &mut [Self], bytes: &[u8]);
}

impl Element for i64 {
    const BYTES: usize = 8;

    fn encode(numbers: &[Self], bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.resize(start + numbers.len() * Self::BYTES, 0);
        for (bytes, number) in bytes[start..].as_chunks_mut::<8>().0.iter_mut().zip(numbers) {
            *bytes = number.to_le_bytes();
        }
    }

    fn add(numbers: &mut [Self], bytes: &[u8]) -> bool {
        // A sum overflowed if its sign differs from both terms' signs; or-ed together, so that the loop has no branch.
        let mut overflow = 0;
        for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks::<8>().0) {
            let other = Self::from_le_bytes(*bytes);
            let sum = number.wrapping_add(other);
            overflow |= (sum ^ *number) & (sum ^ other);
            *number = sum;
        }
        overflow >= 0
    }

    fn decode(numbers: &mut [Self], bytes: &[u8]) {
        for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *number = Self::from_le_bytes(*bytes);
        }
    }
}

impl Element for f32 {
    const BYTES: usize = 4;

    fn encode(numbers: &[Self], bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.resize(start + numbers.len() * Self::BYTES, 0);
        for (bytes, number) in bytes[start..].as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
            *bytes = number.to_le_bytes();
        }
    }

    fn add(numbers: &mut [Self], bytes: &[u8]) -> bool {
        for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *number += Self::from_le_bytes(*bytes);
        }
        true
    }

    fn decode(numbers: &mut [Self], bytes: &[u8]) {
        for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *number = Self::from_le_bytes(*bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Played without a network: every member ends with every sum, and sends what the formula says.
        #[test]
        fn the_plan_sums(members in 2usize..7, elements in 0usize..50) {
            let mut buffers: Vec<Vec<i64>> =
                (0..members).map(|i| (0..elements).map(|e| (i * 1000 + e) as i64).collect()).collect();
            let sums: Vec<i64> = (0..elements).map(|e| buffers.iter().map(|b| b[e]).sum()).collect();
            let plan = Plan::new(elements, members, 8);
            let mut sent = vec![0usize; members];
            let mut line: Vec<Vec<i64>> = (0..members).map(|i| buffers[i][plan.first(i)].to_vec()).collect();
            for round in 0..plan.rounds() {
                let mut next = vec![Vec::new(); members];
                for i in 0..members {
                    let from = (i + members - 1) % members;
                    sent[from] += line[from].len();
                    let segment = &mut buffers[i][plan.received(i, round)];
                    prop_assert_eq!(segment.len(), line[from].len());
                    for (ours, theirs) in segment.iter_mut().zip(&line[from]) {
                        *ours = if plan.adds(round) { *ours + theirs } else { *theirs };
                    }
                    next[i] = segment.to_vec();
                }
                line = next;
            }
            for i in 0..members {
                prop_assert_eq!(&buffers[i], &sums);
                let skipped = plan.first((i + 1) % members).len() + plan.first((i + 2) % members).len();
                prop_assert_eq!(sent[i], 2 * elements - skipped);
            }
        }

        #[test]
        fn chunks_cover_a_segment_and_fit_the_queue(elements in 0usize..100_000_000, members in 2usize..9) {
            let plan = Plan::new(elements, members, 4);
            let chunks: Vec<_> = plan.chunks(plan.first(members - 1)).collect();
            prop_assert!(chunks.len() <= MAX_CHUNKS);
            prop_assert_eq!(chunks.iter().map(ExactSizeIterator::len).sum::<usize>(), plan.first(members - 1).len());
        }
    }

    #[test]
    fn overflow_is_seen() {
        let mut numbers = [1, i64::MAX, -5];
        assert!(!i64::add(&mut numbers, &[1i64, 1, 1].map(i64::to_le_bytes).concat()));
        let mut numbers = [1, i64::MAX, i64::MIN];
        assert!(i64::add(&mut numbers, &[1i64, -1, i64::MAX].map(i64::to_le_bytes).concat()));
        assert_eq!(numbers, [2, i64::MAX - 1, -1]);
    }
}
