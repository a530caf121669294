//! Parquet files, as Hugging Face data sets ship them: flat columns, and nested lists of messages.

use std::{collections::BTreeMap, fs::File, panic, sync::Arc};

use parquet::{
    errors::ParquetError,
    file::{metadata::KeyValue, reader::FileReader, serialized_reader::SerializedFileReader},
    record::{Field, Row, reader::RowIter},
    schema::types::Type,
};
use serde_json::Value;

use super::{DataError, Fields, Header, Name, Sink, Unit};

/// Rows decoded at a time.
const BATCH: usize = 256;

/// Reads a Parquet file: of its columns only those that are of use.
pub(super) fn read(file: File, name: Name<'_>, sink: &mut dyn Sink) -> Result<(), DataError> {
    let damaged = |error: String| name.file_error(format!("cannot be read as Parquet: {error}"));
    let reader = caught(|| SerializedFileReader::new(file)).map_err(damaged)?;
    let metadata = reader.metadata().file_metadata();
    let columns = metadata.schema().get_fields();
    let header = Header {
        names: columns.iter().map(|column| column.name().to_owned()).collect(),
        typed: true,
        classes: metadata.key_value_metadata().map(|pairs| classes(pairs)).unwrap_or_default(),
    };
    let wanted = sink.header(header).map_err(|message| name.file_error(message))?;
    let wanted: Vec<_> = columns
        .iter()
        .zip(wanted)
        .filter(|(_, wanted)| *wanted)
        .map(|(column, _)| Arc::clone(column))
        .collect();
    let schema = caught(|| Type::group_type_builder(metadata.schema().name()).with_fields(wanted).build())
        .map_err(damaged)?;
    let mut number = 0;
    for group in 0..reader.num_row_groups() {
        let group = caught(|| reader.get_row_group(group)).map_err(damaged)?;
        let mut rows = caught(|| {
            RowIter::from_row_group(Some(schema.clone()), group.as_ref())
                .map(|rows| rows.with_batch_size(BATCH))
        })
        .map_err(damaged)?;
        while let Some(row) = caught(|| rows.next().transpose()).map_err(|error| {
            let place = name.place(Unit::Row, number + 1);
            DataError::Row { place, message: format!("cannot be read: {error}") }
        })? {
            number += 1;
            sink.row(name.place(Unit::Row, number), fields(&row))?;
        }
    }
    Ok(())
}

/// A row's or a group's fields as JSON.
fn fields(row: &Row) -> Result<Fields, String> {
    let field = |(name, field): (&String, &Field)| match value(field) {
        Ok(value) => Ok((name.clone(), value)),
        Err(what) => Err(format!("has a `{name}` that {what}")),
    };
    row.get_column_iter().map(field).collect()
}

/// As the crate's own conversion, but bytes that nothing calls a text are one where they are UTF-8, and never Base64.
fn value(field: &Field) -> Result<Value, String> {
    match field {
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data())
            .map(|text| Value::String(text.to_owned()))
            .map_err(|error| format!("is no UTF-8: {error}")),
        Field::Group(row) => {
            fields(row).map(Value::Object).map_err(|what| format!("holds an object that {what}"))
        }
        Field::ListInternal(list) => {
            list.elements().iter().map(value).collect::<Result<_, _>>().map(Value::Array)
        }
        other => Ok(other.to_json_value()),
    }
}

/// Runs a piece of the parquet crate, which panics on some damaged files.
fn caught<T>(f: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    match panic::catch_unwind(panic::AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("its pages do not hold what its schema says".to_owned()),
    }
}

/// What the `datasets` library says of class labels: {"info": {"features": {"label": {"names": […]}}}}.
fn classes(pairs: &[KeyValue]) -> BTreeMap<String, Vec<String>> {
    let text = pairs.iter().find(|pair| pair.key == "huggingface").and_then(|pair| pair.value.as_deref());
    let Some(Ok(info)) = text.map(serde_json::from_str::<Value>) else { return BTreeMap::new() };
    let Some(features) = info.pointer("/info/features").and_then(Value::as_object) else {
        return BTreeMap::new();
    };
    features
        .iter()
        .filter_map(|(column, feature)| {
            let names = feature.get("names")?.as_array()?;
            let names = names.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<_>>()?;
            Some((column.clone(), names))
        })
        .collect()
}
