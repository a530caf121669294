//! A data set: every line read, tokenized and labelled, once, before training.

use std::io::BufRead;

use lorafleet_proto::v1 as pb;

use super::{
    example::Example,
    formats::{self, Format, Row},
    mask::MaskError,
    tokenize::Tokenizer,
};

/// Examples that a data set may have.
const MAX_EXAMPLES: usize = 50_000_000;

/// How a data set was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The recognized format.
    pub format: Format,
    /// Examples used.
    pub examples: u64,
    /// Examples cut off at max_length.
    pub truncated: u64,
    /// Examples left out because no token of theirs carries a label within max_length.
    pub skipped: u64,
    /// Tokens in the used examples.
    pub tokens: u64,
    /// Tokens that carry a label.
    pub labelled_tokens: u64,
    /// Tokens of the longest used example.
    pub longest: u64,
}

impl From<&Summary> for pb::DataSummary {
    fn from(summary: &Summary) -> Self {
        Self {
            format: summary.format.name().to_owned(),
            examples: summary.examples,
            truncated: summary.truncated,
            skipped: summary.skipped,
            tokens: summary.tokens,
            labelled_tokens: summary.labelled_tokens,
        }
    }
}

/// What is wrong with a data set.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// One line is bad.
    #[error("line {line} {message}")]
    Line {
        /// Its number, from 1; blank lines count.
        line: u64,
        /// What is wrong with it.
        message: String,
    },
    /// The base's chat template does not suit the data set.
    #[error("line {line}: {message}")]
    NotPrefixStable {
        /// The line where it showed, from 1.
        line: u64,
        /// Where it is not.
        message: String,
    },
    /// No line holds an example.
    #[error("the data set is empty: no line holds an example")]
    Empty,
    /// It has more examples than can be addressed.
    #[error("the data set has more than {MAX_EXAMPLES} examples")]
    TooMany,
    /// No example has a token with a label.
    #[error(
        "all tokens of all {examples} examples are masked: none has an assistant's turn within max_length {max_length}; \
         add assistant messages or raise max_length"
    )]
    AllMasked {
        /// Examples read.
        examples: u64,
        /// The job's max_length.
        max_length: usize,
    },
    /// max_length passes the positions that the base has.
    #[error("max_length is {max_length}, longer than the {max_positions} positions of the base")]
    TooLong {
        /// The job's max_length.
        max_length: usize,
        /// The base's positions.
        max_positions: usize,
    },
}

/// A data set, ready to train on.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// In the order of the lines, those without labels left out.
    pub examples: Vec<Example>,
    /// How it was read.
    pub summary: Summary,
}

impl Dataset {
    /// Reads a data set, one JSON object a line; blank lines are skipped.
    ///
    /// Examples are cut off after `max_length` tokens. Those whose labels all lie beyond it, or that have none, are
    /// left out and counted.
    ///
    /// # Errors
    /// The first bad line, by its number; an empty or wholly masked data set; a max_length that the base's
    /// `max_positions` do not allow.
    pub fn read(
        reader: impl BufRead,
        tokenizer: &Tokenizer,
        max_length: usize,
        max_positions: usize,
    ) -> Result<Self, DataError> {
        Self::read_all(reader, tokenizer, max_length, max_positions, 1)
            .map_err(|mut errors| errors.pop().unwrap_or(DataError::Empty))
    }

    /// As [`Dataset::read`], but tells up to `limit` bad lines.
    ///
    /// # Errors
    /// At least one error; only bad lines come in numbers.
    pub fn read_all(
        reader: impl BufRead,
        tokenizer: &Tokenizer,
        max_length: usize,
        max_positions: usize,
        limit: usize,
    ) -> Result<Self, Vec<DataError>> {
        if max_length > max_positions {
            return Err(vec![DataError::TooLong { max_length, max_positions }]);
        }
        let (mut builder, mut bad) = (Builder::new(max_length), Vec::new());
        let end = each_row(reader, |line, row| {
            match row.and_then(|row| builder.add(line, &row, tokenizer)) {
                Err(error @ DataError::Line { .. }) if bad.len() + 1 < limit => bad.push(error),
                other => other?,
            }
            Ok(())
        });
        bad.extend(end.err());
        if bad.is_empty() { builder.finish().map_err(|error| vec![error]) } else { Err(bad) }
    }
}

/// Reads a data set without a tokenizer: the number of lines that hold an example.
///
/// # Errors
/// The first bad line, by its number; an empty data set.
pub fn check_reader(reader: impl BufRead) -> Result<u64, DataError> {
    let mut examples = 0;
    each_row(reader, |_, row| row.map(|_| examples += 1))?;
    if examples == 0 { Err(DataError::Empty) } else { Ok(examples) }
}

/// Calls `each` with every line that is not blank and its number, until that gives an error.
fn each_row(
    mut reader: impl BufRead,
    mut each: impl FnMut(u64, Result<Row, DataError>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let (mut bytes, mut line) = (Vec::new(), 0);
    loop {
        bytes.clear();
        line += 1;
        let bad = |message: String| DataError::Line { line, message };
        // One byte more than is allowed, so that a longer line is seen to be one without being read whole.
        let mut limited = std::io::Read::take(&mut reader, formats::MAX_LINE as u64 + 1);
        if limited.read_until(b'\n', &mut bytes)? == 0 {
            return Ok(());
        }
        if bytes.len() > formats::MAX_LINE && bytes.last() != Some(&b'\n') {
            return Err(bad(format!("has more than {} bytes", formats::MAX_LINE)));
        }
        let text = std::str::from_utf8(&bytes).map_err(|error| bad(format!("is not UTF-8: {error}")))?;
        let text = if line == 1 { text.trim_start_matches('\u{feff}') } else { text }.trim();
        if !text.is_empty() {
            each(line, formats::parse_line(text).map_err(bad))?;
        }
    }
}

/// Gathers examples and what is told of them.
struct Builder {
    max_length: usize,
    read: u64,
    truncated: u64,
    format: Format,
    examples: Vec<Example>,
}

impl Builder {
    fn new(max_length: usize) -> Self {
        Self { max_length, read: 0, truncated: 0, format: Format::Chat, examples: Vec::new() }
    }

    fn add(&mut self, line: u64, row: &Row, tokenizer: &Tokenizer) -> Result<(), DataError> {
        let bad = |message: String| DataError::Line { line, message };
        let Row::Chat(chat) = row;
        let (mut tokens, mut labels) = tokenizer.encode_chat(chat).map_err(|error| match error {
            MaskError::NotPrefixStable { .. } => {
                DataError::NotPrefixStable { line, message: error.to_string() }
            }
            other => bad(format!("cannot be used: {other}")),
        })?;
        if let Some(vocab) = tokenizer.vocab()
            && let Some(token) = tokens.iter().find(|token| **token as usize >= vocab)
        {
            return Err(bad(format!(
                "holds the token {token}, but the base has only {vocab}: its tokenizer.json is another model's"
            )));
        }
        self.read += 1;
        self.format = row.format();
        if self.examples.len() >= MAX_EXAMPLES {
            return Err(DataError::TooMany);
        }
        let cut = tokens.len() > self.max_length;
        tokens.truncate(self.max_length);
        labels.truncate(self.max_length);
        // Nothing stands before the first token that it could be predicted from.
        if let Some(first) = labels.first_mut() {
            *first = false;
        }
        if labels.contains(&true) {
            self.truncated += u64::from(cut);
            self.examples.push(Example::causal(tokens, labels));
        }
        Ok(())
    }

    fn finish(self) -> Result<Dataset, DataError> {
        if self.read == 0 {
            return Err(DataError::Empty);
        }
        if self.examples.is_empty() {
            return Err(DataError::AllMasked { examples: self.read, max_length: self.max_length });
        }
        let examples = self.examples.len() as u64;
        let summary = Summary {
            format: self.format,
            examples,
            truncated: self.truncated,
            skipped: self.read - examples,
            tokens: self.examples.iter().map(|example| example.tokens.len() as u64).sum(),
            labelled_tokens: self.examples.iter().map(|example| example.labelled() as u64).sum(),
            longest: self
                .examples
                .iter()
                .map(|example| example.tokens.len() as u64)
                .max()
                .unwrap_or_default(),
        };
        Ok(Dataset { examples: self.examples, summary })
    }
}

#[cfg(test)]
mod tests;
