//! A data set: every row of its files read, tokenized and labelled, once, before training.

use std::{collections::BTreeMap, fs::File, io::Read, path::PathBuf};

use super::{
    container::{self, Fields, FileKind, Header, Input, Name, Sink},
    encode::{Draft, Encoder},
    example::{Example, Target},
    formats::{Content, Format, Row, Rules},
    labels::{Label, Labels},
    mask::MaskError,
    place::{DataError, Place},
    summary::{Counts, Summary},
    template::TemplateError,
    tokenize::Tokenizer,
};
use crate::job::{DataSpec, LossOn, Task};

/// Examples that a data set may have.
const MAX_EXAMPLES: usize = 50_000_000;

/// One file of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// What its user calls it. Its extension helps to recognize CSV and plain text.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
}

/// How a data set is read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadOptions {
    /// What is trained: it decides which formats are looked for.
    pub task: Task,
    /// Tokens at most in an example.
    pub max_length: usize,
    /// Positions that the base has.
    pub max_positions: usize,
    /// The data's own names of fields, by ours.
    pub columns: BTreeMap<String, String>,
    /// What labels there are; `None`: those of this data set.
    pub labels: Option<Labels>,
    /// Raw text: tokens that a chunk repeats of the one before it.
    pub overlap: usize,
    /// Which tokens carry a label.
    pub loss_on: LossOn,
}

impl ReadOptions {
    /// For next-token prediction, all else as by default.
    pub fn causal(max_length: usize, max_positions: usize) -> Self {
        Self {
            task: Task::CausalLm,
            max_length,
            max_positions,
            columns: BTreeMap::new(),
            labels: None,
            overlap: 0,
            loss_on: LossOn::Completions,
        }
    }

    /// As a job says it.
    ///
    /// # Errors
    /// The labels that it names are no labels of a classifier.
    pub fn of(
        task: Task,
        data: &DataSpec,
        max_length: usize,
        max_positions: usize,
    ) -> Result<Self, DataError> {
        let labels = match (task, data.labels.as_slice()) {
            (Task::CausalLm, _) | (_, []) => None,
            (Task::Classification, names) => Some(
                Labels::classes(names.to_vec())
                    .map_err(|what| DataError::Setting(format!("data.labels: {what}")))?,
            ),
        };
        Ok(Self {
            task,
            columns: data.columns.clone(),
            labels,
            overlap: data.overlap as usize,
            loss_on: data.loss_on,
            ..Self::causal(max_length, max_positions)
        })
    }
}

/// A data set, ready to train on.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// In the order of the rows, those without labels left out.
    pub examples: Vec<Example>,
    /// What its labels are, where texts have one.
    pub labels: Option<Labels>,
    /// How it was read.
    pub summary: Summary,
}

impl Dataset {
    /// Reads the files of a data set, in their order; tells up to `limit` bad rows.
    ///
    /// Examples are cut off after `max_length` tokens. Those whose labels all lie beyond it, or that have none, are
    /// left out and counted.
    ///
    /// # Errors
    /// At least one: bad rows by their places (only they come in numbers), a file that cannot be read, an empty or wholly
    /// masked data set, a `max_length` that the base's positions do not allow.
    pub fn load(
        files: &[DataFile],
        tokenizer: &Tokenizer,
        options: &ReadOptions,
        limit: usize,
    ) -> Result<Self, Vec<DataError>> {
        let mut builder = Builder::new(tokenizer, options, limit).map_err(|error| vec![error])?;
        let said = files.len() > 1;
        for file in files {
            let name = Name { name: &file.name, said };
            let read = match File::open(&file.path) {
                Ok(opened) => builder.file(Input::File(opened), name),
                Err(source) => Err(DataError::Io { file: name.said(), source }),
            };
            if let Err(error) = read {
                builder.bad.push(error);
                return Err(builder.bad);
            }
        }
        builder.finish()
    }

    /// Reads a causal data set from the bytes of one file.
    ///
    /// # Errors
    /// The first that [`Dataset::load`] would give.
    pub fn read(
        reader: impl Read,
        tokenizer: &Tokenizer,
        max_length: usize,
        max_positions: usize,
    ) -> Result<Self, DataError> {
        let options = ReadOptions::causal(max_length, max_positions);
        let mut builder = Builder::new(tokenizer, &options, 1)?;
        builder.file(Input::Stream(Box::new(reader)), Name { name: "", said: false })?;
        builder.finish().map_err(|mut errors| errors.pop().unwrap_or(DataError::Empty))
    }
}

/// Gathers examples and what is told of them.
struct Builder<'a> {
    encoder: Encoder<'a>,
    rules: Rules,
    labels: Option<Labels>,
    limit: usize,
    bad: Vec<DataError>,
    /// What the file that is read says of its columns.
    header: Header,
    kinds: Vec<FileKind>,
    format: Option<Format>,
    read: u64,
    counts: Counts,
    examples: Vec<Example>,
    /// The examples' labels, as long as it is not known what they stand for.
    raw: Vec<Label>,
}

impl<'a> Builder<'a> {
    fn new(tokenizer: &'a Tokenizer, options: &ReadOptions, limit: usize) -> Result<Self, DataError> {
        let &ReadOptions { max_length, max_positions, overlap, loss_on, .. } = options;
        if max_length > max_positions {
            return Err(DataError::TooLong { max_length, max_positions });
        }
        Ok(Self {
            encoder: Encoder { tokenizer, max_length, overlap, loss_on },
            rules: Rules { task: Some(options.task), columns: options.columns.clone() },
            labels: options.labels.clone(),
            limit,
            bad: Vec::new(),
            header: Header::default(),
            kinds: Vec::new(),
            format: None,
            read: 0,
            counts: Counts::default(),
            examples: Vec::new(),
            raw: Vec::new(),
        })
    }

    fn file(&mut self, input: Input<'_>, name: Name<'_>) -> Result<(), DataError> {
        self.header = Header { typed: true, ..Header::default() };
        let kind = container::read(input, name, self)?;
        self.kinds.push(kind);
        Ok(())
    }

    fn add(&mut self, place: &Place, fields: Fields) -> Result<(), DataError> {
        let bad = |message: String| DataError::Row { place: place.clone(), message };
        let Row { format, content } = self.rules.row(fields, self.header.typed).map_err(bad)?;
        let before = *self.format.get_or_insert(format);
        if before != format {
            return Err(bad(format.differs_from(before)));
        }
        let drafts = self.encoder.encode(&content).map_err(|error| unusable(place, error))?;
        self.read += 1;
        let used = self.examples.len();
        for draft in drafts {
            self.check_tokens(&draft.tokens).map_err(bad)?;
            if self.examples.len() >= MAX_EXAMPLES {
                return Err(DataError::TooMany(MAX_EXAMPLES));
            }
            let cut = draft.cut;
            let example = match &content {
                Content::Labelled { label, .. } => Some(self.whole(draft, label).map_err(bad)?),
                _ => causal(draft),
            };
            self.counts.truncated += u64::from(cut && example.is_some());
            self.examples.extend(example);
        }
        self.counts.skipped += u64::from(self.examples.len() == used);
        Ok(())
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<(), String> {
        let Some(vocab) = self.encoder.tokenizer.vocab() else { return Ok(()) };
        match tokens.iter().find(|token| **token as usize >= vocab) {
            None => Ok(()),
            Some(token) => Err(format!(
                "holds the token {token}, but the base has only {vocab}: its tokenizer.json is another model's"
            )),
        }
    }

    /// An example with a label for the whole; a class 0 stands for labels that are not known yet.
    fn whole(&mut self, draft: Draft, label: &Label) -> Result<Example, String> {
        if draft.tokens.is_empty() {
            return Err("has no tokens: its text is empty".to_owned());
        }
        let meaning = self.rules.meaning(label.clone(), &self.header);
        let target = match &self.labels {
            Some(labels) => labels.target(&meaning)?,
            None => {
                self.raw.push(meaning.label);
                Target::Class(0)
            }
        };
        Ok(Example { tokens: draft.tokens, second: draft.second, target })
    }

    fn finish(mut self) -> Result<Dataset, Vec<DataError>> {
        if !self.bad.is_empty() {
            return Err(self.bad);
        }
        self.resolve_labels().map_err(|error| vec![error])?;
        let (Some(format), true) = (self.format, self.read > 0) else { return Err(vec![DataError::Empty]) };
        let Encoder { max_length, overlap, .. } = self.encoder;
        if overlap > 0 && format != Format::Text {
            let message = format!(
                "data.overlap is {overlap}, but only raw text is cut into chunks, and this data set is {}",
                format.name()
            );
            return Err(vec![DataError::Setting(message)]);
        }
        if self.examples.is_empty() {
            return Err(vec![DataError::AllMasked { examples: self.read, max_length }]);
        }
        let summary = Summary::new(format, &self.kinds, self.counts, &self.examples, self.labels.as_ref());
        Ok(Dataset { examples: self.examples, labels: self.labels, summary })
    }

    /// Where no labels were given, those of all rows are the labels.
    fn resolve_labels(&mut self) -> Result<(), DataError> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let labels = Labels::of_training(&self.raw).map_err(DataError::Labels)?;
        for (example, label) in self.examples.iter_mut().zip(&self.raw) {
            example.target = labels.of(label).map_err(DataError::Labels)?;
        }
        self.labels = Some(labels);
        Ok(())
    }
}

impl Sink for Builder<'_> {
    fn header(&mut self, header: Header) -> Result<Vec<bool>, String> {
        let wanted = self.rules.columns_of_use(&header)?;
        if self.labels.is_none() && self.raw.is_empty() {
            self.labels = self.rules.declared(&header)?;
        }
        self.header = header;
        Ok(wanted)
    }

    fn row(&mut self, place: Place, row: Result<Fields, String>) -> Result<(), DataError> {
        let added = match row {
            Ok(fields) => self.add(&place, fields),
            Err(message) => Err(DataError::Row { place, message }),
        };
        match added {
            Err(error) if error.is_row() && self.bad.len() + 1 < self.limit => {
                self.bad.push(error);
                Ok(())
            }
            other => other,
        }
    }
}

/// An example of which tokens are predicted, if there are any.
fn causal(draft: Draft) -> Option<Example> {
    let Draft { tokens, mut labels, .. } = draft;
    // Nothing stands before the first token that it could be predicted from.
    if let Some(first) = labels.first_mut() {
        *first = false;
    }
    labels.contains(&true).then(|| Example::causal(tokens, labels))
}

fn unusable(place: &Place, error: MaskError) -> DataError {
    match error {
        MaskError::NotPrefixStable { .. } => {
            DataError::Template { place: place.clone(), message: error.to_string() }
        }
        MaskError::Template(TemplateError::Missing) => DataError::Setting(
            "the base has no chat template, so it cannot read chat data: use an instruct base that has one, or give \
             the data as prompt + completion, instruction + output, or text"
                .to_owned(),
        ),
        other => DataError::Row { place: place.clone(), message: format!("cannot be used: {other}") },
    }
}

#[cfg(test)]
mod tests;
