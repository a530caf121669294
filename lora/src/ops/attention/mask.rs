//! Which query sees which key: sequences of a packed batch, heads, causal and sliding masks.

use std::ops::Range;

/// Head counts and the scale of the scores. Query head n reads key/value head `n · kv_heads / heads`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
}

impl Heads {
    /// Width of q's rows.
    pub fn q_columns(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of k's and v's rows.
    pub fn kv_columns(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Query heads that share one key/value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Which keys a query sees, and whether its scores are bounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mask {
    /// Keys up to the query's own place only.
    pub causal: bool,
    /// Keys fewer than this many places before the query only: transformers' `sliding_window`.
    pub window: Option<usize>,
    /// `c` of `c · tanh(score / c)`, which takes the score's place (arXiv:2408.00118).
    pub softcap: Option<f32>,
}

#[cfg(test)]
impl Mask {
    /// Every earlier key and its own.
    pub const CAUSAL: Self = Self { causal: true, window: None, softcap: None };
    /// Every key: encoders.
    pub const ALL: Self = Self { causal: false, window: None, softcap: None };
}

/// One sequence: its rows in q and in k, v. The last query stands at the last key, the one before at the last but one, …
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub queries: Range<usize>,
    pub keys: Range<usize>,
}

impl Span {
    /// Keys that a query sees. Queries and keys are counted from the span's first ones, here and below.
    pub fn visible(&self, query: usize, mask: Mask) -> Range<usize> {
        let place = self.keys.len() - self.queries.len() + query;
        let end = if mask.causal { place + 1 } else { self.keys.len() };
        let start = mask.window.map_or(0, |window| (place + 1).saturating_sub(window.max(1)));
        start..end
    }

    /// Keys that one query or another sees; there is at least one query.
    pub fn seen(&self, queries: Range<usize>, mask: Mask) -> Range<usize> {
        self.visible(queries.start, mask).start..self.visible(queries.end - 1, mask).end
    }

    /// Queries that may see one key or another; there is at least one key.
    pub fn seeing(&self, keys: Range<usize>, mask: Mask) -> Range<usize> {
        let before = self.keys.len() - self.queries.len();
        let from = if mask.causal { keys.start.saturating_sub(before) } else { 0 };
        let end = mask.window.map_or(self.queries.len(), |window| {
            (keys.end + window.max(1) - 1).saturating_sub(before).min(self.queries.len())
        });
        from..end.max(from)
    }

    /// Pairs of query and key.
    pub fn pairs(&self, queries: Range<usize>, mask: Mask) -> usize {
        queries.map(|query| self.visible(query, mask).len()).sum()
    }

    /// Cuts the queries, in multiples of `tile`, into ranges of about `most` pairs.
    pub fn cut(&self, most: usize, tile: usize, mask: Mask) -> Vec<Range<usize>> {
        let len = self.queries.len();
        let (mut ranges, mut from, mut pairs) = (Vec::new(), 0, 0);
        for start in (0..len).step_by(tile) {
            let end = (start + tile).min(len);
            pairs += self.pairs(start..end, mask);
            if pairs >= most || end == len {
                ranges.push(from..end);
                (from, pairs) = (end, 0);
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sees(mask: Mask, query: usize, key: usize) -> bool {
        let behind = query as isize - key as isize;
        (!mask.causal || behind >= 0) && mask.window.is_none_or(|window| behind < window as isize)
    }

    proptest! {
        #[test]
        fn ranges_are_the_definition(
            before in 0usize..9, len in 1usize..40, causal: bool, window in prop::option::of(1usize..12),
            from in 0usize..39, count in 1usize..9, most in 1usize..200,
        ) {
            let mask = Mask { causal, window, softcap: None };
            let span = Span { queries: 7..7 + len, keys: 3..3 + before + len };
            let keys = before + len;
            for query in 0..len {
                let seen: Vec<usize> = (0..keys).filter(|&key| sees(mask, before + query, key)).collect();
                prop_assert_eq!(span.visible(query, mask).collect::<Vec<_>>(), seen);
            }
            let from = from.min(len - 1);
            let some = from..(from + count).min(len);
            let all: Vec<usize> = some.clone().flat_map(|q| span.visible(q, mask)).collect();
            let seen = span.seen(some.clone(), mask);
            prop_assert_eq!((seen.start, seen.end), (*all.iter().min().unwrap(), all.iter().max().unwrap() + 1));
            let seeing = span.seeing(some.clone(), mask);
            for query in 0..len {
                if span.visible(query, mask).any(|key| some.contains(&key)) {
                    prop_assert!(seeing.contains(&query));
                }
            }
            let cut: Vec<usize> = span.cut(most, 4, mask).into_iter().flatten().collect();
            prop_assert_eq!(cut, (0..len).collect::<Vec<_>>());
        }
    }
}
