//! From a row to tokens and labels: one example, or, for a long text, as many as it has chunks.

use std::ops::Range;

use super::{
    formats::{Chat, Content},
    mask::{self, MaskError},
    tokenize::{Tokenizer, TokenizerError},
};
use crate::job::LossOn;

/// Tokens of an example before its target is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Draft {
    pub tokens: Vec<u32>,
    /// The first token of a pair's second text.
    pub second: Option<usize>,
    /// Which tokens are to be predicted; empty where the whole is.
    pub labels: Vec<bool>,
    /// Whether tokens had to be left out.
    pub cut: bool,
}

/// How rows become tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Encoder<'a> {
    pub tokenizer: &'a Tokenizer,
    pub max_length: usize,
    /// Tokens that a chunk repeats of the one before it.
    pub overlap: usize,
    pub loss_on: LossOn,
}

impl Encoder<'_> {
    /// The examples of a row, each of at most `max_length` tokens; some may have nothing to predict.
    pub fn encode(&self, content: &Content) -> Result<Vec<Draft>, MaskError> {
        Ok(match content {
            Content::Chat(chat) => vec![self.cut(self.chat(chat)?)],
            Content::Completion { prompt, completion } => {
                vec![self.cut(self.completion(prompt, completion)?)]
            }
            Content::Text(text) => self.text(text)?,
            Content::Labelled { text, second, .. } => {
                let texts = self.tokenizer.encode_texts(text, second.as_deref(), self.max_length)?;
                vec![Draft { tokens: texts.tokens, second: texts.second, labels: Vec::new(), cut: texts.cut }]
            }
        })
    }

    fn chat(&self, chat: &Chat) -> Result<(Vec<u32>, Vec<bool>), MaskError> {
        let (tokens, mut labels) = mask::encode(self.tokenizer, chat)?;
        if self.loss_on == LossOn::All {
            labels.fill(true);
        }
        Ok((tokens, labels))
    }

    /// Prompt and completion are one text. A token that begins within the prompt belongs to it.
    fn completion(&self, prompt: &str, completion: &str) -> Result<(Vec<u32>, Vec<bool>), TokenizerError> {
        let whole = self.tokenizer.encode_whole(&[prompt, completion].concat())?;
        let start = prompt.chars().count();
        let all = self.loss_on == LossOn::All;
        // Tokens that the tokenizer put around the text stand at (0, 0).
        let mut labels: Vec<bool> =
            whole.offsets.iter().map(|&(first, last)| all || (first >= start && last > first)).collect();
        let mut tokens = whole.tokens;
        self.end(&mut tokens, &mut labels);
        Ok((tokens, labels))
    }

    /// A document, ended, in chunks.
    fn text(&self, text: &str) -> Result<Vec<Draft>, TokenizerError> {
        let mut tokens = self.tokenizer.encode_whole(text)?.tokens;
        let mut labels = vec![true; tokens.len()];
        self.end(&mut tokens, &mut labels);
        let draft = |chunk: Chunk| Draft {
            tokens: tokens[chunk.tokens.clone()].to_vec(),
            second: None,
            labels: chunk.tokens.map(|i| i >= chunk.new).collect(),
            cut: false,
        };
        Ok(chunks(tokens.len(), self.max_length, self.overlap).map(draft).collect())
    }

    /// The end is learned too, or the model would never stop. A text or a tokenizer may have put it there already.
    fn end(&self, tokens: &mut Vec<u32>, labels: &mut Vec<bool>) {
        let Some(end) = self.tokenizer.end() else { return };
        if tokens.last() != Some(&end) {
            tokens.push(end);
            labels.push(true);
        } else if let Some(last) = labels.last_mut() {
            *last = true;
        }
    }

    fn cut(&self, (mut tokens, mut labels): (Vec<u32>, Vec<bool>)) -> Draft {
        let cut = tokens.len() > self.max_length;
        tokens.truncate(self.max_length);
        labels.truncate(self.max_length);
        Draft { tokens, second: None, labels, cut }
    }
}

/// One chunk of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chunk {
    /// Where it lies in the document.
    tokens: Range<usize>,
    /// Its first token that the chunk before did not have.
    new: usize,
}

/// Chunks of at most `max_length` tokens, each beginning with the last `overlap` of the one before. A last chunk of one
/// token, which could not be predicted from anything, takes the one before it along.
fn chunks(len: usize, max_length: usize, overlap: usize) -> impl Iterator<Item = Chunk> {
    let step = max_length.saturating_sub(overlap).max(1);
    let mut next = Some(0);
    std::iter::from_fn(move || {
        let start = next.filter(|start| *start < len)?;
        let end = (start + max_length).min(len);
        next = (end < len).then_some(start + step);
        let first = if end - start == 1 { start.saturating_sub(1) } else { start };
        let new = if start == 0 { 0 } else { start + max_length - step };
        Some(Chunk { tokens: first..end, new })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every token lies in a chunk, is new in one of them only, and no chunk is longer than allowed.
        #[test]
        fn chunks_cover_every_token(len in 0usize..200, max_length in 2usize..40, overlap in 0usize..39) {
            let overlap = overlap.min(max_length - 1);
            let mut covered = 0;
            for chunk in chunks(len, max_length, overlap) {
                prop_assert!(chunk.tokens.len() <= max_length);
                prop_assert!(chunk.tokens.len() >= 2.min(len));
                prop_assert_eq!(chunk.new, covered, "the first new token follows the last covered one");
                prop_assert!(chunk.tokens.start <= chunk.new && chunk.new < chunk.tokens.end);
                if covered > 0 {
                    prop_assert!(chunk.new - chunk.tokens.start >= overlap);
                }
                covered = chunk.tokens.end;
            }
            prop_assert_eq!(covered, len);
        }
    }

    #[test]
    fn chunks_by_hand() {
        let parts =
            |len, max, overlap| chunks(len, max, overlap).map(|c| (c.tokens, c.new)).collect::<Vec<_>>();
        assert_eq!(parts(9, 4, 0), [(0..4, 0), (4..8, 4), (7..9, 8)]);
        assert_eq!(parts(9, 4, 1), [(0..4, 0), (3..7, 4), (6..9, 7)]);
        assert_eq!(parts(4, 4, 3), [(0..4, 0)]);
        assert_eq!(parts(6, 4, 3), [(0..4, 0), (1..5, 4), (2..6, 5)]);
        assert_eq!(parts(1, 4, 0), [(0..1, 0)]);
    }
}
