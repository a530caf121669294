//! From the bytes of a file to rows of named fields, whatever kind of file it is.

mod array;
mod csv;
mod decompress;
mod lines;
mod parquet;
mod sniff;

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek as _},
};

use serde_json::{Map, Value};

use self::{
    decompress::{Compression, Watched},
    sniff::Magic,
};
use super::place::{DataError, Place, Unit};

/// Bytes that one row may have.
pub const MAX_LINE: usize = 16 << 20;
/// Bytes that a plain text file may have: it is one document, and is tokenized at once.
const MAX_TEXT: usize = 64 << 20;
/// Bytes read ahead; a CSV file's header is recognized in them.
const BUFFER: usize = 64 << 10;

/// The fields of a row.
pub type Fields = Map<String, Value>;

/// The bytes of a file.
pub enum Input<'a> {
    /// A file, read from its beginning.
    File(File),
    /// Bytes that come once, in order. Parquet cannot be read from them.
    Stream(Box<dyn Read + 'a>),
}

impl fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File(_) => "Input::File",
            Self::Stream(_) => "Input::Stream",
        })
    }
}

/// How a file holds its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// One JSON object a line.
    JsonLines,
    /// One JSON list of objects.
    JsonList,
    /// Comma- (or tab-, or semicolon-) separated values with a header.
    Csv,
    /// Apache Parquet.
    Parquet,
    /// Plain text, which is one document.
    Text,
}

/// What a file was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileKind {
    /// How it holds its rows.
    pub container: Container,
    /// What it is compressed with, as a whole.
    pub compression: Option<Compression>,
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.container {
            Container::JsonLines => "JSON lines",
            Container::JsonList => "JSON",
            Container::Csv => "CSV",
            Container::Parquet => "Parquet",
            Container::Text => "plain text",
        })?;
        match self.compression {
            Some(compression) => write!(f, " in {compression}"),
            None => Ok(()),
        }
    }
}

/// What a file says of its columns before the first row.
#[derive(Debug, Default)]
pub(super) struct Header {
    /// Their names.
    pub names: Vec<String>,
    /// Whether values have types of their own; in CSV all are texts.
    pub typed: bool,
    /// Names of the classes that a column's integers stand for (`datasets` writes them into its Parquet files).
    pub classes: BTreeMap<String, Vec<String>>,
}

/// Who takes the rows.
pub(super) trait Sink {
    /// Told once by files that have a header; answers which of the columns are of use.
    fn header(&mut self, header: Header) -> Result<Vec<bool>, String>;

    /// Told every row, or what is wrong with it, until it gives an error.
    fn row(&mut self, place: Place, row: Result<Fields, String>) -> Result<(), DataError>;
}

/// Why reading ended early.
pub(super) enum Stop {
    /// The bytes cannot be had, or cannot be decompressed.
    Io(io::Error),
    /// Something else.
    Data(DataError),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<DataError> for Stop {
    fn from(error: DataError) -> Self {
        Self::Data(error)
    }
}

/// A file's name within its data set: how its errors begin, where there are several.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name<'a> {
    /// What it is called; its extension is a hint.
    pub name: &'a str,
    /// Whether errors say it.
    pub said: bool,
}

impl Name<'_> {
    pub fn said(&self) -> Option<String> {
        self.said.then(|| self.name.to_owned())
    }

    pub fn place(&self, unit: Unit, number: u64) -> Place {
        Place { file: self.said(), unit, number }
    }

    pub fn file_error(&self, message: impl Into<String>) -> DataError {
        DataError::File { file: self.said(), message: message.into() }
    }
}

/// Whether a file that begins with these bytes (4 or more) can only be read as an [`Input::File`].
pub fn needs_file(head: &[u8]) -> bool {
    sniff::magic(head) == Some(Magic::Parquet)
}

/// Reads all rows of a file. What it is, is recognized by its content; the name's extension is a hint.
pub(super) fn read(input: Input<'_>, name: Name<'_>, sink: &mut dyn Sink) -> Result<FileKind, DataError> {
    let io = |source| DataError::Io { file: name.said(), source };
    let (file, mut source): (_, Box<dyn Read + '_>) = match input {
        Input::File(mut file) => {
            file.rewind().map_err(io)?;
            let copy = file.try_clone().map_err(io)?;
            (Some(file), Box::new(copy))
        }
        Input::Stream(stream) => (None, stream),
    };
    let mut head = Vec::with_capacity(sniff::HEAD);
    (&mut source).take(sniff::HEAD as u64).read_to_end(&mut head).map_err(io)?;
    let compression = match sniff::magic(&head) {
        Some(Magic::Parquet) => {
            let Some(file) = file else {
                return Err(name.file_error("is Parquet, which cannot be read from a stream"));
            };
            parquet::read(file, name, sink)?;
            return Ok(FileKind { container: Container::Parquet, compression: None });
        }
        Some(Magic::Compressed(compression)) => Some(compression),
        Some(Magic::Foreign(what)) => return Err(name.file_error(sniff::foreign(what))),
        None => None,
    };
    let mut watched = Watched::new(io::Cursor::new(head).chain(source));
    let failed = watched.failed();
    let result = match compression {
        None => plain(&mut watched, name, None, sink),
        Some(compression) => compression
            .decoder(&mut watched)
            .map_err(Stop::from)
            .and_then(|mut decoder| plain(&mut decoder, name, Some(compression), sink)),
    };
    let container = result.map_err(|stop| match (stop, compression) {
        (Stop::Data(error), _) => error,
        (Stop::Io(error), Some(compression)) if !failed.get() => {
            name.file_error(format!("is damaged: its {compression} data cannot be unpacked ({error})"))
        }
        (Stop::Io(error), _) => io(error),
    })?;
    Ok(FileKind { container, compression })
}

/// Reads what is not compressed (any more).
fn plain(
    source: &mut dyn Read,
    name: Name<'_>,
    compression: Option<Compression>,
    sink: &mut dyn Sink,
) -> Result<Container, Stop> {
    let mut reader = BufReader::with_capacity(BUFFER, source);
    let start = fill(&mut reader)?;
    let container = match sniff::magic(&start) {
        Some(Magic::Parquet) => {
            return Err(name
                .file_error("is Parquet within another compression: Parquet packs its own columns; unpack it")
                .into());
        }
        Some(Magic::Compressed(inner)) if compression.is_some() => {
            return Err(name
                .file_error(format!("is packed twice, with {inner} inside; unpack it once"))
                .into());
        }
        Some(Magic::Foreign(what)) => return Err(name.file_error(sniff::foreign(what)).into()),
        _ => sniff::container(&start, name.name),
    };
    match container {
        Container::JsonLines => lines::json(&mut reader, name, sink)?,
        Container::Text => lines::text(&mut reader, name, sink)?,
        Container::Csv => csv::read(&mut reader, sniff::delimiter(&start), name, sink)?,
        Container::JsonList | Container::Parquet => array::read(&mut reader, name, sink)?,
    }
    Ok(container)
}

/// The first bytes, which stay to be read; at least as many as tell what the file is.
fn fill(reader: &mut BufReader<&mut dyn Read>) -> io::Result<Vec<u8>> {
    Ok(reader.fill_buf()?.to_vec())
}

#[cfg(test)]
mod tests;
