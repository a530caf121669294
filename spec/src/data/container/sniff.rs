//! What a file is, by its first bytes, with its name's extension as a hint.

use super::{Container, decompress::Compression};

/// Bytes at the beginning of a file that tell what it is.
pub(super) const HEAD: usize = 8;

/// What a file's first bytes say it is; nothing for text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Magic {
    /// Apache Parquet.
    Parquet,
    /// Compressed as a whole.
    Compressed(Compression),
    /// Something that is not read.
    Foreign(&'static str),
}

/// What these first bytes say.
pub(super) fn magic(head: &[u8]) -> Option<Magic> {
    const KNOWN: &[(&[u8], Magic)] = &[
        (b"PAR1", Magic::Parquet),
        (b"\x1f\x8b", Magic::Compressed(Compression::Gzip)),
        (b"\x28\xb5\x2f\xfd", Magic::Compressed(Compression::Zstd)),
        (b"PARE", Magic::Foreign("encrypted Parquet")),
        (b"PK\x03\x04", Magic::Foreign("a zip archive (or Excel sheet)")),
        (b"ARROW1", Magic::Foreign("an Arrow IPC file")),
        (b"\xff\xff\xff\xff", Magic::Foreign("an Arrow stream")),
        (b"BZh", Magic::Foreign("packed with bzip2")),
        (b"\xfd7zXZ", Magic::Foreign("packed with xz")),
        (b"\x04\x22\x4d\x18", Magic::Foreign("packed with lz4")),
        (b"\xff\xfe", Magic::Foreign("UTF-16 text")),
        (b"\xfe\xff", Magic::Foreign("UTF-16 text")),
        (b"\x89PNG", Magic::Foreign("an image")),
        (b"%PDF", Magic::Foreign("a PDF")),
        (b"version https://git-lfs", Magic::Foreign("a Git LFS pointer, not the file itself")),
    ];
    KNOWN.iter().find(|(bytes, _)| head.starts_with(bytes)).map(|(_, magic)| *magic)
}

/// The error of a file that is not read.
pub(super) fn foreign(what: &str) -> String {
    format!(
        "is {what}; give JSON lines, a JSON list, CSV, Parquet or plain text in UTF-8, the text ones also in gzip or zstd"
    )
}

/// How a text file holds its rows, by its first bytes and its name.
pub(super) fn container(start: &[u8], name: &str) -> Container {
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
    match (extension(name).as_str(), first) {
        ("txt" | "text" | "md", _) => Container::Text,
        (_, Some(b'{')) => Container::JsonLines,
        ("csv" | "tsv", _) => Container::Csv,
        (_, Some(b'[')) => Container::JsonList,
        _ => Container::JsonLines,
    }
}

/// The extension in lower case, without that of a compression.
fn extension(name: &str) -> String {
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default().to_ascii_lowercase();
    let name = [".gz", ".zst", ".zstd"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    name.rsplit_once('.').map(|(_, extension)| extension.to_owned()).unwrap_or_default()
}

/// What separates the columns of a CSV file: what its header has most of.
pub(super) fn delimiter(start: &[u8]) -> u8 {
    let header = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let count = |delimiter: &u8| header.iter().filter(|byte| *byte == delimiter).count();
    // Of equally many the last wins.
    *[b';', b'\t', b','].iter().max_by_key(|delimiter| count(delimiter)).unwrap_or(&b',')
}
