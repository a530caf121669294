//! SHA256SUMS of a base: the list of its files, whose own digest is the base's name.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::{Digest, FileName, InvalidId, layout};

/// Files of one base at most.
const FILES_LIMIT: usize = 1_000;

/// The files of a base with their digests, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums {
    files: BTreeMap<FileName, Digest>,
}

/// Why a text is no SHA256SUMS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SumsError {
    /// Not in the form that sha256sum writes.
    #[error("line {line} of SHA256SUMS is not `digest  name`")]
    Form {
        /// Counted from 1.
        line: usize,
    },
    /// A digest or name is none.
    #[error("line {line} of SHA256SUMS: {source}")]
    Id {
        /// Counted from 1.
        line: usize,
        /// Which, and why not.
        source: InvalidId,
    },
    /// One base has one digest, so there is one way to write its list.
    #[error(
        "line {line} of SHA256SUMS is not in its place: names are sorted, each occurs once, SHA256SUMS itself does not"
    )]
    Order {
        /// Counted from 1.
        line: usize,
    },
    /// No file, or too many.
    #[error("SHA256SUMS lists {count} files; it must be 1 to {FILES_LIMIT}")]
    Count {
        /// How many.
        count: usize,
    },
}

impl Sums {
    /// Reads the text: one `digest  name` line per file, sorted by name, each ended by a newline.
    ///
    /// # Errors
    /// [`SumsError`], with the line.
    pub fn parse(text: &str) -> Result<Sums, SumsError> {
        let mut files = BTreeMap::new();
        let mut last: Option<FileName> = None;
        for (line, content) in text.split_inclusive('\n').enumerate().map(|(i, content)| (i + 1, content)) {
            let form = || SumsError::Form { line };
            let (digest, name) =
                content.strip_suffix('\n').ok_or_else(form)?.split_once("  ").ok_or_else(form)?;
            let id = |source| SumsError::Id { line, source };
            let (digest, name): (Digest, FileName) = (digest.parse().map_err(id)?, name.parse().map_err(id)?);
            if last.as_ref().is_some_and(|last| *last >= name) || name.as_str() == layout::SUMS {
                return Err(SumsError::Order { line });
            }
            last = Some(name.clone());
            files.insert(name, digest);
            if files.len() > FILES_LIMIT {
                break;
            }
        }
        match files.len() {
            1..=FILES_LIMIT => Ok(Sums { files }),
            count => Err(SumsError::Count { count }),
        }
    }

    /// The list of these files.
    ///
    /// # Errors
    /// [`SumsError::Count`], and [`SumsError::Order`] when one of them is named SHA256SUMS.
    pub fn new(files: BTreeMap<FileName, Digest>) -> Result<Sums, SumsError> {
        Sums::parse(&Sums { files }.to_text())
    }

    /// The text, as `sha256sum` writes and checks it.
    pub fn to_text(&self) -> String {
        self.files.iter().fold(String::new(), |mut text, (name, digest)| {
            let _ = writeln!(text, "{digest}  {name}"); // writing to a string cannot fail
            text
        })
    }

    /// The base's digest: that of the text.
    pub fn digest(&self) -> Digest {
        Digest::of(self.to_text().as_bytes())
    }

    /// The files, sorted by name.
    pub fn files(&self) -> &BTreeMap<FileName, Digest> {
        &self.files
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn prints_and_parses(names in prop::collection::btree_set("[a-z][a-z0-9._-]{0,8}", 1..9)) {
            let files = names.iter().map(|name| (name.parse().unwrap(), Digest::of(name.as_bytes()))).collect();
            let sums = Sums::new(files).unwrap();
            prop_assert_eq!(Sums::parse(&sums.to_text()), Ok(sums.clone()));
            prop_assert_eq!(sums.digest(), Digest::of(sums.to_text().as_bytes()));
        }

        #[test]
        fn never_panics(text in ".{0,200}") {
            let _ = Sums::parse(&text);
        }
    }

    #[test]
    fn says_which_line_is_wrong() {
        let digest = Digest::of(b"x");
        let line = |name: &str| format!("{digest}  {name}\n");
        assert!(matches!(Sums::parse(""), Err(SumsError::Count { count: 0 })));
        assert!(matches!(Sums::parse(&format!("{}x", line("a"))), Err(SumsError::Form { line: 2 })));
        assert!(matches!(Sums::parse(&(line("a") + &line("../b"))), Err(SumsError::Id { line: 2, .. })));
        assert!(matches!(Sums::parse(&(line("b") + &line("a"))), Err(SumsError::Order { line: 2 })));
        assert!(matches!(Sums::parse(&(line("a") + &line("a"))), Err(SumsError::Order { line: 2 })));
        assert!(matches!(Sums::parse(&line("SHA256SUMS")), Err(SumsError::Order { line: 1 })));
    }
}
