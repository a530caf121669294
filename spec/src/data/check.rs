//! Files of a data set checked without a base: as they are uploaded, or where there is no tokenizer.

use std::{collections::HashMap, fs::File, path::Path};

use super::{
    container::{self, Fields, FileKind, Header, Input, Name, Sink},
    formats::{Content, Format, Rules},
    labels::{Label, Labels, Meaning},
    place::{DataError, Place},
};

/// What a file was found to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// What the file is.
    pub kind: FileKind,
    /// The recognized format.
    pub format: Format,
    /// Rows that hold an example.
    pub examples: u64,
}

/// Reads a whole file without a tokenizer. The name's extension helps to recognize CSV and plain text.
///
/// # Errors
/// The first bad row, by its place; a file of an unknown kind, a damaged one, an empty one.
pub fn check(input: Input<'_>, name: &str, rules: &Rules) -> Result<Checked, DataError> {
    FileCheck::new(rules, None, false).file(input, name)
}

/// Checks the files of one data set, one after the other, and gathers their labels.
#[derive(Debug)]
pub struct FileCheck<'a> {
    rules: &'a Rules,
    said: bool,
    header: Header,
    format: Option<Format>,
    examples: u64,
    known: Option<Labels>,
    /// Every label that occurs, once.
    seen: HashMap<String, Label>,
}

impl<'a> FileCheck<'a> {
    /// A check by these rules and labels, if they are known; with `said`, errors name the file.
    pub fn new(rules: &'a Rules, labels: Option<Labels>, said: bool) -> Self {
        Self {
            rules,
            said,
            header: Header::default(),
            format: None,
            examples: 0,
            known: labels,
            seen: HashMap::new(),
        }
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// As [`check`].
    pub fn file(&mut self, input: Input<'_>, name: &str) -> Result<Checked, DataError> {
        self.header = Header { typed: true, ..Header::default() };
        let before = self.examples;
        let kind = container::read(input, Name { name, said: self.said }, self)?;
        match self.format {
            Some(format) if self.examples > before => {
                Ok(Checked { kind, format, examples: self.examples - before })
            }
            _ => Err(DataError::Empty),
        }
    }

    /// Opens and reads a whole file.
    ///
    /// # Errors
    /// As [`check`], and that it cannot be opened.
    pub fn path(&mut self, path: &Path, name: &str) -> Result<Checked, DataError> {
        let file = File::open(path)
            .map_err(|source| DataError::Io { file: self.said.then(|| name.to_owned()), source })?;
        self.file(Input::File(file), name)
    }

    /// What the labels of all files are; `None` where texts have none.
    ///
    /// # Errors
    /// They are of no use: only one, or too many.
    pub fn labels(&self) -> Result<Option<Labels>, DataError> {
        match &self.known {
            Some(labels) => Ok(Some(labels.clone())),
            None if self.seen.is_empty() => Ok(None),
            None => Labels::of_training(self.seen.values()).map(Some).map_err(DataError::Labels),
        }
    }

    fn add(&mut self, fields: Fields) -> Result<(), String> {
        let row = self.rules.row(fields, self.header.typed)?;
        let before = *self.format.get_or_insert(row.format);
        if before != row.format {
            return Err(row.format.differs_from(before));
        }
        if let Content::Labelled { label, .. } = row.content {
            match (self.rules.meaning(label, &self.header), &self.known) {
                (meaning, Some(labels)) => drop(labels.target(&meaning)?),
                (Meaning { label, .. }, None) => drop(self.seen.entry(label.key()).or_insert(label)),
            }
        }
        self.examples += 1;
        Ok(())
    }
}

impl Sink for FileCheck<'_> {
    fn header(&mut self, header: Header) -> Result<Vec<bool>, String> {
        let wanted = self.rules.columns_of_use(&header)?;
        if self.known.is_none() && self.seen.is_empty() {
            self.known = self.rules.declared(&header)?;
        }
        self.header = header;
        Ok(wanted)
    }

    fn row(&mut self, place: Place, row: Result<Fields, String>) -> Result<(), DataError> {
        row.and_then(|fields| self.add(fields)).map_err(|message| DataError::Row { place, message })
    }
}
