//! Digests as lorafleet writes them: lower-case hex sha256, and the SHA256SUMS text that names a base.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha2::{Digest as _, Sha256};

/// Bytes read at a time while a file is hashed.
const CHUNK: usize = 1 << 20;

/// Lower-case hex sha256 of some bytes.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Size in bytes and lower-case hex sha256 of a file.
///
/// # Errors
/// Whatever opening and reading the file gives.
pub fn hash_file(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let (mut hasher, mut buffer, mut size) = (Sha256::new(), vec![0; CHUNK], 0u64);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((size, hex(&hasher.finalize()))),
            n => {
                hasher.update(&buffer[..n]);
                size += n as u64;
            }
        }
    }
}

/// Whether a text is a lower-case hex sha256.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The SHA256SUMS text of a base's files, given as (name, sha256): one `digest  name` line per file, sorted by name.
pub fn sums_text(files: &[(String, String)]) -> String {
    let mut files: Vec<_> = files.iter().collect();
    files.sort();
    files.iter().fold(String::new(), |text, (name, sha256)| text + sha256 + "  " + name + "\n")
}

/// The files, as (name, sha256), that a SHA256SUMS text lists; `None` when a line of it is malformed or names
/// something outside the base's folder.
pub fn parse_sums(text: &str) -> Option<Vec<(String, String)>> {
    text.lines()
        .map(|line| {
            let (sha256, name) = line.split_once("  ")?;
            let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0']);
            (is_sha256(sha256) && plain).then(|| (name.to_owned(), sha256.to_owned()))
        })
        .collect()
}

/// A base's digest: the sha256 of its [`sums_text`].
pub fn base_digest(files: &[(String, String)]) -> String {
    sha256_hex(sums_text(files).as_bytes())
}

/// The digest of a data set of these files in this order: the file's own where there is one, else the sha256 of the
/// files' digests, one a line.
pub fn data_digest<S: AsRef<str>>(files: &[S]) -> String {
    match files {
        [one] => one.as_ref().to_owned(),
        files => {
            sha256_hex(files.iter().fold(String::new(), |text, file| text + file.as_ref() + "\n").as_bytes())
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digest() {
        assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_base_digest_does_not_depend_on_the_order_of_its_files() {
        let a = ("a.json".to_owned(), sha256_hex(b"a"));
        let b = ("b.json".to_owned(), sha256_hex(b"b"));
        assert_eq!(base_digest(&[a.clone(), b.clone()]), base_digest(&[b.clone(), a.clone()]));
        let text = sums_text(&[b.clone(), a.clone()]);
        assert!(text.ends_with("  b.json\n"));
        assert_eq!(parse_sums(&text), Some(vec![a, b]));
    }

    #[test]
    fn a_data_set_depends_on_the_order_of_its_files() {
        assert_eq!(data_digest(&["a"]), "a");
        assert_eq!(data_digest(&["a", "b"]), sha256_hex(b"a\nb\n"));
        assert_ne!(data_digest(&["a", "b"]), data_digest(&["b", "a"]));
    }

    #[test]
    fn sums_that_leave_the_folder_are_refused() {
        let sha = sha256_hex(b"");
        for name in ["../x", "a/b", "..", "", "a\\b"] {
            assert_eq!(parse_sums(&format!("{sha}  {name}\n")), None, "{name}");
        }
        assert_eq!(parse_sums("nonsense"), None);
    }
}
