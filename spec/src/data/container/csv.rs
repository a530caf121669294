//! CSV files: a header, then rows of as many fields (RFC 4180; also with tabs or semicolons).

use std::io::BufRead;

use csv::{ByteRecord, ErrorKind, ReaderBuilder};
use serde_json::Value;

use super::{
    BUFFER, DataError, Fields, Header, MAX_LINE, Name, Sink, Stop, Unit,
    decompress::{Budget, Metered},
};

/// Reads a CSV file.
pub(super) fn read(
    reader: &mut dyn BufRead,
    delimiter: u8,
    name: Name<'_>,
    sink: &mut dyn Sink,
) -> Result<(), Stop> {
    let (metered, budget) = Metered::new(reader, MAX_LINE + BUFFER);
    let mut rows = ReaderBuilder::new().delimiter(delimiter).has_headers(true).from_reader(metered);
    let names = match rows.byte_headers() {
        Ok(header) => header.clone(),
        Err(error) => return Err(stop(error, 1, name, &budget)),
    };
    let names = names
        .iter()
        .map(|name| String::from_utf8(name.to_vec()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| row_error(name, 1, format!("is not UTF-8: {error}")))?;
    let names: Vec<String> =
        names.iter().map(|name| name.trim_start_matches('\u{feff}').trim().to_owned()).collect();
    if let Some(twice) =
        names.iter().enumerate().find(|(i, one)| !one.is_empty() && names[..*i].contains(one))
    {
        return Err(row_error(name, 1, format!("names the column `{}` twice", twice.1)));
    }
    let header = Header { names: names.clone(), typed: false, ..Header::default() };
    let wanted = sink.header(header).map_err(|message| name.file_error(message))?;
    let mut record = ByteRecord::new();
    loop {
        budget.renew();
        let line = rows.position().line();
        match rows.read_byte_record(&mut record) {
            Ok(false) => return Ok(()),
            Ok(true) => {
                let line = record.position().map_or(line, csv::Position::line);
                sink.row(name.place(Unit::Line, line), fields(&record, &names, &wanted))?;
            }
            Err(error) => match error.kind() {
                ErrorKind::UnequalLengths { pos, expected_len, len } => {
                    let line = pos.as_ref().map_or(line, csv::Position::line);
                    let message = format!("has {len} fields, but the header names {expected_len}");
                    sink.row(name.place(Unit::Line, line), Err(message))?;
                }
                _ => return Err(stop(error, line, name, &budget)),
            },
        }
    }
}

/// The wanted fields of a row, all of them texts.
fn fields(record: &ByteRecord, names: &[String], wanted: &[bool]) -> Result<Fields, String> {
    let mut fields = Fields::new();
    for ((name, value), _) in names.iter().zip(record).zip(wanted).filter(|(_, wanted)| **wanted) {
        let text =
            std::str::from_utf8(value).map_err(|error| format!("is not UTF-8 in `{name}`: {error}"))?;
        fields.insert(name.clone(), Value::String(text.to_owned()));
    }
    Ok(fields)
}

fn row_error(name: Name<'_>, line: u64, message: String) -> Stop {
    DataError::Row { place: name.place(Unit::Line, line), message }.into()
}

/// A row that never ends is its own fault; other errors are the reader's.
fn stop(error: csv::Error, line: u64, name: Name<'_>, budget: &Budget) -> Stop {
    if budget.is_spent() {
        let message = format!("begins a row of more than {MAX_LINE} bytes; is a quote not closed?");
        return row_error(name, line, message);
    }
    match error.into_kind() {
        ErrorKind::Io(error) => Stop::Io(error),
        other => row_error(name, line, format!("cannot be read: {other:?}")),
    }
}
