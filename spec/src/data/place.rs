//! Where in a data set something stands, and what can be wrong there.

use std::fmt;

/// One row's place in a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file's name, where the data set has several.
    pub file: Option<String>,
    /// What the number counts.
    pub unit: Unit,
    /// From 1. Lines count as an editor counts them: blank ones and a CSV file's header too.
    pub number: u64,
}

/// What the rows of a file are numbered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Lines of a text file.
    Line,
    /// Rows of a Parquet file.
    Row,
    /// Entries of a JSON list.
    Entry,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}, ")?;
        }
        let unit = match self.unit {
            Unit::Line => "line",
            Unit::Row => "row",
            Unit::Entry => "entry",
        };
        write!(f, "{unit} {}", self.number)
    }
}

/// What is wrong with a data set.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file cannot be read; its content may be fine.
    #[error("{}cannot be read: {source}", named(.file))]
    Io {
        /// Its name, where the data set has several.
        file: Option<String>,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}{message}", named(.file))]
    File {
        /// Its name, where the data set has several.
        file: Option<String>,
        /// What is wrong with it.
        message: String,
    },
    /// One row is bad.
    #[error("{place} {message}")]
    Row {
        /// Which.
        place: Place,
        /// What is wrong with it.
        message: String,
    },
    /// The base's chat template does not suit the data set.
    #[error("{place}: {message}")]
    Template {
        /// The row where it showed.
        place: Place,
        /// What is wrong.
        message: String,
    },
    /// No row holds an example.
    #[error("the data set is empty: it holds no example")]
    Empty,
    /// It has more examples than can be addressed.
    #[error("the data set has more than {0} examples")]
    TooMany(usize),
    /// No example has a token with a label.
    #[error(
        "all tokens of all {examples} examples are masked: none has something to learn (an assistant's turn, a \
         completion) within max_length {max_length}; check the data, or raise max_length"
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
    /// The labels as a whole are of no use.
    #[error("{0}")]
    Labels(String),
    /// A setting does not go with the data.
    #[error("{0}")]
    Setting(String),
}

impl DataError {
    /// Whether it is about one row, so that the rows after it can still be looked at.
    pub fn is_row(&self) -> bool {
        matches!(self, Self::Row { .. })
    }
}

fn named(file: &Option<String>) -> String {
    file.as_ref().map(|file| format!("{file} ")).unwrap_or_default()
}
