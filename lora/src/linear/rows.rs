//! Whose the rows of a batch are, and which token of which example each is.

use std::ops::Range;

/// Which token a row is: what its dropout mask is keyed by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenKey {
    /// Place of its example in the step.
    pub example: u32,
    /// Place of the token in the example.
    pub token: u32,
}

/// The rows of a batch: the range of each adapter of the pass, and each row's key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// Rows of adapter i, disjoint; rows in none of the ranges go through the base alone.
    adapters: Vec<Range<usize>>,
    /// A key for each row; empty where nothing is dropped.
    keys: Vec<TokenKey>,
}

/// Rows that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub rows: Range<usize>,
    pub adapter: Option<usize>,
}

impl Rows {
    /// Rows `adapters[i]` belong to adapter i of the pass; the ranges are disjoint.
    ///
    /// `keys` has one entry for each row; it may be empty where no adapter has dropout.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for jobs that share a base, and mixed-adapter inference")
    )]
    pub fn new(adapters: Vec<Range<usize>>, keys: Vec<TokenKey>) -> Self {
        Self { adapters, keys }
    }

    /// All rows belong to the pass's only adapter, if it has one.
    pub fn of_one(rows: usize, keys: Vec<TokenKey>) -> Self {
        Self { adapters: std::iter::once(0..rows).collect(), keys }
    }

    /// The same for a batch made of some of the rows, in ascending order.
    pub fn gather(&self, rows: &[u32]) -> Self {
        let below = |at: usize| rows.partition_point(|&row| (row as usize) < at);
        let adapters = self.adapters.iter().map(|range| below(range.start)..below(range.end));
        let keys = if self.keys.is_empty() {
            Vec::new()
        } else {
            rows.iter().map(|&row| self.keys[row as usize]).collect()
        };
        Self { adapters: adapters.collect(), keys }
    }

    /// The keys of some rows.
    pub(super) fn keys(&self, rows: &Range<usize>) -> &[TokenKey] {
        assert!(self.keys.len() >= rows.end, "dropout needs a key for each row");
        &self.keys[rows.clone()]
    }

    /// The first `rows` rows, cut where the adapter changes.
    pub(super) fn segments(&self, rows: usize) -> Vec<Segment> {
        let mut owned: Vec<(Range<usize>, usize)> = self.adapters.iter().cloned().zip(0..).collect();
        owned.retain(|(range, _)| !range.is_empty());
        owned.sort_by_key(|(range, _)| range.start);
        let (mut segments, mut at) = (Vec::with_capacity(owned.len()), 0);
        for (range, adapter) in owned {
            assert!(range.start >= at && range.end <= rows, "the adapters' rows overlap or are too many");
            if range.start > at {
                segments.push(Segment { rows: at..range.start, adapter: None });
            }
            at = range.end;
            segments.push(Segment { rows: range, adapter: Some(adapter) });
        }
        if at < rows {
            segments.push(Segment { rows: at..rows, adapter: None });
        }
        segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_no_adapter_are_segments_too() {
        let rows = Rows::new(vec![5..9, 0..0, 1..3], Vec::new());
        let segment = |rows, adapter| Segment { rows, adapter };
        assert_eq!(
            rows.segments(10),
            [
                segment(0..1, None),
                segment(1..3, Some(2)),
                segment(3..5, None),
                segment(5..9, Some(0)),
                segment(9..10, None)
            ]
        );
        assert_eq!(Rows::of_one(4, Vec::new()).segments(4), [segment(0..4, Some(0))]);
        assert_eq!(Rows::default().segments(4), [segment(0..4, None)]);
    }

    #[test]
    fn gathered_rows_keep_their_adapter_and_key() {
        let keys = (0..10).map(|token| TokenKey { example: 7, token }).collect();
        let rows = Rows::new(vec![5..9, 1..3], keys).gather(&[0, 2, 4, 5, 8, 9]);
        assert_eq!(rows.adapters, [3..5, 1..2]);
        assert_eq!(rows.keys.iter().map(|key| key.token).collect::<Vec<_>>(), [0, 2, 4, 5, 8, 9]);
    }
}
