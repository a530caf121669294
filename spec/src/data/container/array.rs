//! A JSON list of objects, read entry by entry.

use std::{fmt, io::BufRead};

use serde::de::{Deserializer as _, Error as _, SeqAccess, Visitor};
use serde_json::Value;

use super::{
    BUFFER, DataError, MAX_LINE, Name, Sink, Stop, Unit,
    decompress::{Budget, Metered},
    lines,
};

/// Reads one JSON list.
pub(super) fn read(reader: &mut dyn BufRead, name: Name<'_>, sink: &mut dyn Sink) -> Result<(), Stop> {
    skip_mark(reader)?;
    let (metered, budget) = Metered::new(reader, MAX_LINE + BUFFER);
    let buffered = std::io::BufReader::with_capacity(BUFFER, metered);
    let mut parser = serde_json::Deserializer::from_reader(buffered);
    let mut entries = Entries { name, sink, budget: &budget, number: 0, stopped: None };
    let read = parser.deserialize_seq(&mut entries).and_then(|()| parser.end());
    let (number, stopped) = (entries.number, entries.stopped);
    match (read, stopped) {
        (_, Some(error)) => Err(error.into()),
        (Ok(()), None) => Ok(()),
        (Err(error), None) if error.is_io() && !budget.is_spent() => Err(Stop::Io(error.into())),
        (Err(error), None) => {
            let place = name.place(Unit::Entry, number + 1);
            Err(DataError::Row { place, message: format!("is not JSON: {error}") }.into())
        }
    }
}

/// A byte order mark may come first; it is no JSON.
fn skip_mark(reader: &mut dyn BufRead) -> std::io::Result<()> {
    if reader.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
    }
    Ok(())
}

/// Hands on the entries as they are parsed.
struct Entries<'a> {
    name: Name<'a>,
    sink: &'a mut dyn Sink,
    budget: &'a Budget,
    number: u64,
    /// Why the sink wants no more.
    stopped: Option<DataError>,
}

impl<'de> Visitor<'de> for &mut Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(entry) = list.next_element::<Value>()? {
            self.number += 1;
            self.budget.renew();
            let place = self.name.place(Unit::Entry, self.number);
            if let Err(error) = self.sink.row(place, lines::fields(entry)) {
                self.stopped = Some(error);
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}
