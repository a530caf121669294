//! Examples packed one after the other, without padding, into one micro-batch.

use std::ops::Range;

use lorafleet_spec::Example;

use super::ModelError;

/// A micro-batch: the tokens of its examples concatenated; attention stays within an example, positions restart.
///
/// What comes after an example's last labelled token can't change the loss, nor can that token itself (it is only
/// predicted), so neither is computed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedBatch {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    spans: Vec<Range<usize>>,
    rows: Vec<u32>,
    targets: Vec<u32>,
    given: usize,
}

impl PackedBatch {
    /// Packs examples.
    ///
    /// # Errors
    /// An example's labels are not as many as its tokens, or its first token has a label.
    pub fn new(examples: &[&Example]) -> Result<Self, ModelError> {
        Self::pack(examples.iter().map(|e| (e.tokens.as_slice(), e.labels())))
    }

    /// Packs pairs of tokens and labels; where `labels[i]` is set, token i is to be predicted from those before it.
    ///
    /// # Errors
    /// As [`PackedBatch::new`].
    pub fn pack<'a>(examples: impl IntoIterator<Item = (&'a [u32], &'a [bool])>) -> Result<Self, ModelError> {
        let mut batch = Self::default();
        for (index, (tokens, labels)) in examples.into_iter().enumerate() {
            if tokens.len() != labels.len() {
                let message = format!("{} tokens, but {} labels", tokens.len(), labels.len());
                return Err(ModelError::Example { index, message });
            }
            if labels.first() == Some(&true) {
                let message = "the first token has a label, but nothing comes before it".to_owned();
                return Err(ModelError::Example { index, message });
            }
            batch.given += tokens.len();
            let kept = labels.iter().rposition(|&label| label).unwrap_or(0);
            let start = batch.tokens.len();
            for i in (0..kept).filter(|&i| labels[i + 1]) {
                batch.rows.push((start + i) as u32);
                batch.targets.push(tokens[i + 1]);
            }
            batch.append(&tokens[..kept]);
        }
        Ok(batch)
    }

    /// Packs whole sequences without labels, for logits of every position.
    pub fn unlabelled<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut batch = Self::default();
        for tokens in sequences {
            batch.given += tokens.len();
            batch.append(tokens);
        }
        batch
    }

    fn append(&mut self, tokens: &[u32]) {
        if !tokens.is_empty() {
            let start = self.tokens.len();
            self.tokens.extend_from_slice(tokens);
            self.positions.extend(0..tokens.len() as u32);
            self.spans.push(start..self.tokens.len());
        }
    }

    /// Tokens of the examples, as given.
    pub fn tokens(&self) -> usize {
        self.given
    }

    /// Labelled tokens: the loss is their sum.
    pub fn labelled_tokens(&self) -> usize {
        self.targets.len()
    }

    /// The tokens that are computed.
    pub(crate) fn inputs(&self) -> &[u32] {
        &self.tokens
    }

    /// Each token's place in its sequence.
    pub(crate) fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// The sequences.
    pub(crate) fn spans(&self) -> &[Range<usize>] {
        &self.spans
    }

    /// The tokens whose successor has a label, in order.
    pub(crate) fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// Their successors.
    pub(crate) fn targets(&self) -> &[u32] {
        &self.targets
    }

    /// The longest sequence.
    pub(crate) fn longest(&self) -> usize {
        self.spans.iter().map(Range::len).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_without_padding_and_without_useless_tails() {
        let (t, f) = (true, false);
        let batch = PackedBatch::pack([
            ([5u32, 6, 7, 8, 9].as_slice(), [f, f, t, t, f].as_slice()),
            (&[1, 2], &[f, f]),
            (&[3, 4], &[f, t]),
        ])
        .unwrap();
        assert_eq!(batch.inputs(), [5, 6, 7, 3]);
        assert_eq!(batch.positions(), [0, 1, 2, 0]);
        assert_eq!(batch.spans(), [0..3, 3..4]);
        assert_eq!(batch.rows(), [1, 2, 3]);
        assert_eq!(batch.targets(), [7, 8, 4]);
        assert_eq!((batch.tokens(), batch.labelled_tokens(), batch.longest()), (9, 3, 3));
    }

    #[test]
    fn refuses_what_cannot_be_predicted() {
        let first = PackedBatch::pack([([1u32, 2].as_slice(), [true, true].as_slice())]);
        assert!(first.unwrap_err().to_string().contains("example 0"));
        assert!(PackedBatch::pack([([1u32, 2].as_slice(), [false].as_slice())]).is_err());
    }
}
