//! Files of lines: one JSON object on each, or plain text.

use std::io::{BufRead, Read as _};

use serde_json::Value;

use super::{Fields, MAX_LINE, MAX_TEXT, Name, Sink, Stop, Unit};

/// Reads one JSON object a line; blank lines are skipped.
pub(super) fn json(reader: &mut dyn BufRead, name: Name<'_>, sink: &mut dyn Sink) -> Result<(), Stop> {
    let (mut bytes, mut line) = (Vec::new(), 0);
    loop {
        bytes.clear();
        line += 1;
        // One byte more than is allowed, so that a longer line is seen to be one without being read whole.
        let mut limited = reader.take(MAX_LINE as u64 + 1);
        if limited.read_until(b'\n', &mut bytes)? == 0 {
            return Ok(());
        }
        let place = name.place(Unit::Line, line);
        if bytes.len() > MAX_LINE && bytes.last() != Some(&b'\n') {
            let message = format!("has more than {MAX_LINE} bytes");
            return Err(super::DataError::Row { place, message }.into());
        }
        let row = match std::str::from_utf8(&bytes) {
            Err(error) => Err(format!("is not UTF-8: {error}")),
            Ok(text) => {
                let text = if line == 1 { text.trim_start_matches('\u{feff}') } else { text }.trim();
                if text.is_empty() {
                    continue;
                }
                object(text)
            }
        };
        sink.row(place, row)?;
    }
}

/// Reads a JSON object.
pub(super) fn object(text: &str) -> Result<Fields, String> {
    let value = serde_json::from_str(text).map_err(|error| format!("is not JSON: {}", at_column(&error)))?;
    fields(value)
}

/// A JSON value as the object that it should be.
pub(super) fn fields(value: Value) -> Result<Fields, String> {
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err("is JSON, but no object; a row looks like {\"messages\": [...]} or {\"text\": \"...\"}"
            .to_owned()),
    }
}

/// serde_json counts lines within the text that it got, which here is one line.
fn at_column(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.split_once(" at line ") {
        Some((what, _)) => format!("{what} at column {}", error.column()),
        None => text,
    }
}

/// Reads a plain text, which is one row with one field.
pub(super) fn text(reader: &mut dyn BufRead, name: Name<'_>, sink: &mut dyn Sink) -> Result<(), Stop> {
    let mut bytes = Vec::new();
    reader.take(MAX_TEXT as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_TEXT {
        let message =
            format!("has more than {MAX_TEXT} bytes, too many for one document; split it into several files");
        return Err(name.file_error(message).into());
    }
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
            let message = format!("is not UTF-8: {}", error.utf8_error());
            return Err(super::DataError::Row { place: name.place(Unit::Line, line), message }.into());
        }
    };
    let text = text.trim_start_matches('\u{feff}');
    if text.trim().is_empty() {
        return Ok(());
    }
    let mut fields = Fields::new();
    fields.insert("text".to_owned(), Value::String(text.to_owned()));
    Ok(sink.row(name.place(Unit::Line, 1), Ok(fields))?)
}
