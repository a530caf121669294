//! Files of every kind read to rows, and what is said of damaged ones.

use std::{fs, io::Write as _, path::Path};

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Keeps what it is told.
#[derive(Debug, Default)]
struct Rows {
    header: Vec<String>,
    rows: Vec<(String, Result<Value, String>)>,
}

impl Sink for Rows {
    fn header(&mut self, header: Header) -> Result<Vec<bool>, String> {
        self.header = header.names;
        // `unused` stands for what a format has no use for.
        Ok(self.header.iter().map(|name| name != "unused").collect())
    }

    fn row(&mut self, place: Place, row: Result<Fields, String>) -> Result<(), DataError> {
        self.rows.push((place.to_string(), row.map(Value::Object)));
        Ok(())
    }
}

fn read_named(bytes: &[u8], name: &str) -> Result<(FileKind, Rows), String> {
    let mut rows = Rows::default();
    let kind = read(Input::Stream(Box::new(bytes)), Name { name, said: false }, &mut rows);
    kind.map(|kind| (kind, rows)).map_err(|error| error.to_string())
}

fn example(name: &str) -> (FileKind, Rows) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/formats").join(name);
    let mut rows = Rows::default();
    let file = File::open(path).unwrap();
    let kind = read(Input::File(file), Name { name, said: false }, &mut rows).unwrap();
    (kind, rows)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn places(rows: &Rows) -> Vec<&str> {
    rows.rows.iter().map(|(place, _)| place.as_str()).collect()
}

const LINES: &[u8] = b"{\"text\": \"a\"}\n\n {\"text\": \"b\"}";

#[test]
fn lines_are_read_as_they_are_and_packed() {
    let zstd = zstd::encode_all(LINES, 3).unwrap();
    let twice = [gzip(&LINES[..14]), gzip(&LINES[14..])].concat();
    for (bytes, kind) in [
        (LINES.to_vec(), "JSON lines"),
        (gzip(LINES), "JSON lines in gzip"),
        (twice, "JSON lines in gzip"),
        (zstd, "JSON lines in zstd"),
    ] {
        let (found, rows) = read_named(&bytes, "x").unwrap();
        assert_eq!(found.to_string(), kind);
        assert_eq!(places(&rows), ["line 1", "line 3"]);
        assert_eq!(rows.rows[1].1, Ok(json!({"text": "b"})));
    }
}

#[test]
fn a_json_list_is_read_by_entries() {
    let (kind, rows) = read_named(b"\xef\xbb\xbf [\n{\"text\":\n\"a\"}, 3]\n", "x.json").unwrap();
    assert_eq!((kind.to_string().as_str(), places(&rows)), ("JSON", vec!["entry 1", "entry 2"]));
    assert_eq!(rows.rows[0].1, Ok(json!({"text": "a"})));
    assert!(rows.rows[1].1.as_ref().unwrap_err().contains("no object"));
    let error = read_named(b"[{\"text\": \"a\"}, {\"text\": ]", "x.json").unwrap_err();
    assert!(error.starts_with("entry 2 is not JSON"), "{error}");
    assert!(read_named(b"[] x", "").unwrap_err().contains("not JSON"));
}

#[test]
fn csv_has_a_header_and_quotes() {
    let text = "\u{feff}text,unused,label\n\"a, \"\"b\"\"\nc\",1,x\n\nd,2,\ne,3\nf,4,y\n";
    let (kind, rows) = read_named(text.as_bytes(), "x.csv").unwrap();
    assert_eq!(kind.to_string(), "CSV");
    assert_eq!(rows.header, ["text", "unused", "label"]);
    assert_eq!(rows.rows[0], ("line 2".into(), Ok(json!({"text": "a, \"b\"\nc", "label": "x"}))));
    assert_eq!(rows.rows[1].1, Ok(json!({"text": "d", "label": ""})));
    let (place, row) = &rows.rows[2];
    assert_eq!(place, "line 6");
    assert!(row.as_ref().unwrap_err().contains("has 2 fields, but the header names 3"));
    assert_eq!(rows.rows[3].1, Ok(json!({"text": "f", "label": "y"})));
    for (text, name) in [("a\tb\n1\t2", "x.tsv"), ("a;b\n1;2", "x.csv.gz")] {
        let (_, rows) = read_named(text.as_bytes(), name).unwrap();
        assert_eq!(rows.rows[0].1, Ok(json!({"a": "1", "b": "2"})));
    }
    assert!(read_named(b"a,a\n1,2", "x.csv").unwrap_err().contains("names the column `a` twice"));
    let latin = read_named(b"text\ngr\xfcn\n", "x.csv").unwrap().1;
    assert!(latin.rows[0].1.as_ref().unwrap_err().contains("not UTF-8 in `text`"));
}

#[test]
fn a_quote_that_is_not_closed_does_not_fill_the_memory() {
    let text = ["text\n\"", &"a\n".repeat(MAX_LINE)].concat();
    let error = read_named(text.as_bytes(), "x.csv").unwrap_err();
    assert!(error.starts_with("line 2 begins a row of more than") && error.contains("quote"), "{error}");
}

#[test]
fn plain_text_is_one_document() {
    let (kind, rows) = read_named("{ä\n\nb\n".as_bytes(), "notes.TXT").unwrap();
    assert_eq!((kind.container, places(&rows)), (Container::Text, vec!["line 1"]));
    assert_eq!(rows.rows[0].1, Ok(json!({"text": "{ä\n\nb\n"})));
    assert!(read_named(b" \n", "a.txt").unwrap().1.rows.is_empty());
    assert!(read_named(b"a\nb\n\xff", "a.txt").unwrap_err().starts_with("line 3 is not UTF-8"));
}

#[test]
fn parquet_is_read_with_its_nested_lists() {
    let (kind, rows) = example("chat.parquet");
    assert_eq!((kind.to_string().as_str(), rows.rows.len()), ("Parquet", 16));
    assert_eq!(rows.header, ["messages", "id"]);
    let (place, row) = &rows.rows[15];
    let messages = row.as_ref().unwrap()["messages"].as_array().unwrap();
    assert_eq!((place.as_str(), messages.len()), ("row 16", 2));
    assert_eq!(messages[1]["role"], "assistant");
    assert!(read_named(b"PAR1....", "x").unwrap_err().contains("cannot be read from a stream"));
}

#[test]
fn damaged_files_are_told_from_unreadable_ones() {
    let whole = gzip(&b"{\"text\": \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}\n".repeat(100));
    let error = read_named(&whole[..whole.len() / 2], "x.gz").unwrap_err();
    assert!(error.contains("is damaged: its gzip data cannot be unpacked"), "{error}");
    let error = read_named(b"\x28\xb5\x2f\xfdnonsense", "x.zst").unwrap_err();
    assert!(error.contains("its zstd data cannot be unpacked"), "{error}");
    assert!(read_named(&gzip(&gzip(LINES)), "x").unwrap_err().contains("is packed twice"));
    assert!(read_named(&gzip(b"PAR1xxxx"), "x").unwrap_err().contains("unpack it"));
    assert!(read_named(b"PK\x03\x04....", "x.zip").unwrap_err().contains("a zip archive"));
    let failing = Input::Stream(Box::new(Failing(std::io::Cursor::new(whole[..20].to_vec()))));
    let error = read(failing, Name { name: "x", said: false }, &mut Rows::default()).unwrap_err();
    assert!(matches!(error, DataError::Io { .. }), "{error}");
}

/// A disk that breaks.
struct Failing(std::io::Cursor<Vec<u8>>);

impl Read for Failing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::Error::other("broken disk")),
            n => Ok(n),
        }
    }
}

#[test]
fn a_damaged_parquet_file_is_told() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/formats/chat.parquet");
    let whole = fs::read(path).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&whole[..whole.len() - 100]).unwrap();
    let error = read(Input::File(file), Name { name: "x", said: true }, &mut Rows::default()).unwrap_err();
    assert!(error.to_string().starts_with("x cannot be read as Parquet: "), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_make_it_panic(
        start in prop::sample::select(vec![
            &b""[..], b"{", b"[", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"a,b\n",
        ]),
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        name in prop_oneof![Just("x"), Just("x.csv"), Just("x.json"), Just("x.txt"), Just("x.tsv.gz")],
    ) {
        let bytes = [start, &bytes].concat();
        let _ = read_named(&bytes, name);
    }

    #[test]
    fn no_damage_to_parquet_makes_it_panic(at in any::<prop::sample::Index>(), with in any::<u8>(), file in 0usize..2) {
        let name = ["chat.parquet", "pairs.parquet"][file];
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/formats").join(name);
        let mut bytes = fs::read(path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = with;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file.rewind().unwrap();
        let _ = read(Input::File(file), Name { name, said: false }, &mut Rows::default());
    }
}
