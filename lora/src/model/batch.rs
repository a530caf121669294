//! Examples packed one after the other, without padding, into one micro-batch.

use std::ops::Range;

use lorafleet_spec::data::{Example, Target};

use super::ModelError;
use crate::linear::TokenKey;

/// A micro-batch: the tokens of its examples concatenated; attention stays within an example, positions restart.
///
/// Where tokens are predicted, what comes after an example's last labelled token can't change the loss, nor can that
/// token itself (it is only predicted), so neither is computed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedBatch {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    /// 1 for tokens of a pair's second text; empty where no example is a pair.
    types: Vec<u32>,
    spans: Vec<Range<usize>>,
    /// The example of each span, by its place in the batch, or in the step once that is known.
    examples: Vec<u32>,
    labels: Labels,
    given: usize,
    stretch: usize,
}

/// What is to be predicted of a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Labels {
    /// Nothing yet.
    #[default]
    Nothing,
    /// The successors of some tokens.
    Tokens {
        /// The tokens whose successor has a label, in order.
        rows: Vec<u32>,
        /// Their successors.
        targets: Vec<u32>,
    },
    /// A class for each sequence.
    Classes(Vec<u32>),
    /// A number for each sequence.
    Scores(Vec<f32>),
}

impl PackedBatch {
    /// Packs examples, all with the same kind of target.
    ///
    /// # Errors
    /// An example's labels are not as many as its tokens, or its first token has a label; or an example has no token,
    /// or another kind of target than those before it.
    pub fn new(examples: &[&Example]) -> Result<Self, ModelError> {
        let mut batch = Self::default();
        for (index, example) in examples.iter().enumerate() {
            let problem = |message: &str| Err(ModelError::Example { index, message: message.to_owned() });
            match (&example.target, &mut batch.labels) {
                (Target::Tokens(labels), Labels::Nothing | Labels::Tokens { .. }) => {
                    batch.append_labelled(index, &example.tokens, labels, example.second)?;
                    continue;
                }
                (Target::Class(class), Labels::Classes(classes)) => classes.push(*class),
                (Target::Class(class), labels @ Labels::Nothing) => *labels = Labels::Classes(vec![*class]),
                (Target::Score(score), Labels::Scores(scores)) => scores.push(*score),
                (Target::Score(score), labels @ Labels::Nothing) => *labels = Labels::Scores(vec![*score]),
                _ => return problem("has another kind of target than the examples before it"),
            }
            if example.tokens.is_empty() {
                return problem("has no token");
            }
            batch.count(example.tokens.len());
            batch.append(index, &example.tokens, example.second);
        }
        Ok(batch)
    }

    /// Says which places in the step the batch's examples have, in order: an example's dropout mask belongs to its place in
    /// the step, not to the micro-batch that it lies in.
    #[must_use]
    pub fn at_places(mut self, places: &[usize]) -> Self {
        self.examples.iter_mut().for_each(|example| *example = places[*example as usize] as u32);
        self
    }

    /// Packs pairs of tokens and labels; where `labels[i]` is set, token i is to be predicted from those before it.
    ///
    /// # Errors
    /// As [`PackedBatch::new`].
    pub fn pack<'a>(examples: impl IntoIterator<Item = (&'a [u32], &'a [bool])>) -> Result<Self, ModelError> {
        let mut batch = Self::default();
        for (index, (tokens, labels)) in examples.into_iter().enumerate() {
            batch.append_labelled(index, tokens, labels, None)?;
        }
        Ok(batch)
    }

    /// Packs whole sequences without labels, for logits of every position.
    pub fn unlabelled<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut batch = Self::default();
        for (index, tokens) in sequences.into_iter().enumerate() {
            batch.count(tokens.len());
            batch.append(index, tokens, None);
        }
        batch
    }

    fn append_labelled(
        &mut self,
        index: usize,
        tokens: &[u32],
        labels: &[bool],
        second: Option<usize>,
    ) -> Result<(), ModelError> {
        if tokens.len() != labels.len() {
            let message = format!("{} tokens, but {} labels", tokens.len(), labels.len());
            return Err(ModelError::Example { index, message });
        }
        if labels.first() == Some(&true) {
            let message = "the first token has a label, but nothing comes before it".to_owned();
            return Err(ModelError::Example { index, message });
        }
        if self.labels == Labels::Nothing {
            self.labels = Labels::Tokens { rows: Vec::new(), targets: Vec::new() };
        }
        let start = self.tokens.len();
        let kept = labels.iter().rposition(|&label| label).unwrap_or(0);
        if let Labels::Tokens { rows, targets } = &mut self.labels {
            for i in (0..kept).filter(|&i| labels[i + 1]) {
                rows.push((start + i) as u32);
                targets.push(tokens[i + 1]);
            }
        }
        self.count(tokens.len());
        self.append(index, &tokens[..kept], second);
        Ok(())
    }

    /// Counts an example's tokens, those that are not computed too.
    fn count(&mut self, tokens: usize) {
        self.given += tokens;
        self.stretch = self.stretch.max(tokens);
    }

    fn append(&mut self, index: usize, tokens: &[u32], second: Option<usize>) {
        if tokens.is_empty() {
            return;
        }
        let start = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend(0..tokens.len() as u32);
        if second.is_some() && self.types.is_empty() {
            self.types.resize(start, 0);
        }
        if second.is_some() || !self.types.is_empty() {
            let second = second.unwrap_or(tokens.len());
            self.types.extend((0..tokens.len()).map(|i| u32::from(i >= second)));
        }
        self.spans.push(start..self.tokens.len());
        self.examples.push(index as u32);
    }

    /// Tokens of the examples, as given.
    pub fn tokens(&self) -> usize {
        self.given
    }

    /// What the loss is summed over: labelled tokens, or sequences with a class or a score.
    pub fn labelled_tokens(&self) -> usize {
        match &self.labels {
            Labels::Nothing => 0,
            Labels::Tokens { targets, .. } => targets.len(),
            Labels::Classes(classes) => classes.len(),
            Labels::Scores(scores) => scores.len(),
        }
    }

    /// Sequences that are computed.
    pub fn sequences(&self) -> usize {
        self.spans.len()
    }

    /// The tokens that are computed.
    pub(crate) fn inputs(&self) -> &[u32] {
        &self.tokens
    }

    /// Each token's place in its sequence.
    pub(crate) fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Each token's type; empty where all are of the first.
    pub(crate) fn types(&self) -> &[u32] {
        &self.types
    }

    /// The sequences.
    pub(crate) fn spans(&self) -> &[Range<usize>] {
        &self.spans
    }

    /// Which token of which of the step's examples each row is.
    pub(crate) fn keys(&self) -> Vec<TokenKey> {
        let key = |(span, &example): (&Range<usize>, &u32)| {
            (0..span.len() as u32).map(move |token| TokenKey { example, token })
        };
        self.spans.iter().zip(&self.examples).flat_map(key).collect()
    }

    /// What is to be predicted.
    pub(crate) fn labels(&self) -> &Labels {
        &self.labels
    }

    /// Tokens of the longest example, those that are not computed too: what dynamic rope scaling goes by.
    pub(crate) fn stretch(&self) -> usize {
        self.stretch
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
        assert_eq!(batch.labels(), &Labels::Tokens { rows: vec![1, 2, 3], targets: vec![7, 8, 4] });
        assert_eq!((batch.tokens(), batch.labelled_tokens(), batch.longest()), (9, 3, 3));
        assert_eq!(batch.stretch(), 5);
        let keys: Vec<_> =
            batch.at_places(&[8, 9, 10]).keys().iter().map(|key| (key.example, key.token)).collect();
        assert_eq!(keys, [(8, 0), (8, 1), (8, 2), (10, 0)]);
    }

    #[test]
    fn sequences_with_a_class_are_kept_whole() {
        let example = |tokens: &[u32], second, class| Example {
            tokens: tokens.to_vec(),
            second,
            target: Target::Class(class),
        };
        let (a, b) = (example(&[5, 6, 7], None, 2), example(&[1, 2, 3, 4], Some(3), 0));
        let batch = PackedBatch::new(&[&a, &b]).unwrap();
        assert_eq!(batch.inputs(), [5, 6, 7, 1, 2, 3, 4]);
        assert_eq!(batch.types(), [0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(batch.labels(), &Labels::Classes(vec![2, 0]));
        assert_eq!((batch.tokens(), batch.labelled_tokens(), batch.sequences()), (7, 2, 2));
        let score = Example { target: Target::Score(0.5), ..a.clone() };
        let mixed = PackedBatch::new(&[&a, &score]).unwrap_err().to_string();
        assert!(mixed.contains("example 1") && mixed.contains("another kind"), "{mixed}");
    }

    #[test]
    fn refuses_what_cannot_be_predicted() {
        let first = PackedBatch::pack([([1u32, 2].as_slice(), [true, true].as_slice())]);
        assert!(first.unwrap_err().to_string().contains("example 0"));
        assert!(PackedBatch::pack([([1u32, 2].as_slice(), [false].as_slice())]).is_err());
        let empty = Example { tokens: vec![], second: None, target: Target::Class(0) };
        assert!(PackedBatch::new(&[&empty]).is_err());
    }
}
