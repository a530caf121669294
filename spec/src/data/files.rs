//! Which files a data set has: a path, or a pattern that several match.

use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};

/// Files that one pattern may stand for.
const MAX_FILES: usize = 10_000;
/// How the URL of a path on this machine begins.
const FILE: &str = "file://";
/// `*` stays within a folder, `**` crosses folders; hidden files are named, not matched.
const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// Why a pattern gives no files.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// It is not a valid one.
    #[error("'{pattern}' is no pattern: {message}")]
    Pattern {
        /// What was given.
        pattern: String,
        /// Why not.
        message: String,
    },
    /// Nothing matches.
    #[error("no file matches '{0}'")]
    None(String),
    /// Too much does.
    #[error("more than {MAX_FILES} files match '{0}'")]
    TooMany(String),
    /// A folder cannot be read.
    #[error("'{pattern}': {source}")]
    Io {
        /// What was given.
        pattern: String,
        /// Why not.
        source: std::io::Error,
    },
}

/// Whether a source is a pattern (`*`, `?`, `[…]`) rather than a path.
pub fn is_pattern(source: &str) -> bool {
    source.contains(['*', '?', '['])
}

/// Whether a source lies in another object store, and not in this machine's folders.
pub fn is_elsewhere(source: &str) -> bool {
    source.contains("://") && !source.starts_with(FILE)
}

/// The path of a source in this machine's folders, relative or not.
pub fn local_path(source: &str) -> &str {
    source.strip_prefix(FILE).unwrap_or(source)
}

/// The files of a source, in the order of their names, each with what to call it. A path is itself, whether it exists
/// or not; it is taken from `dir`.
///
/// # Errors
/// A pattern that is none, or that nothing matches.
pub fn expand(source: &str, dir: &Path) -> Result<Vec<(String, PathBuf)>, FilesError> {
    let path = local_path(source);
    if !is_pattern(path) || dir.join(path).exists() {
        return Ok(vec![(source.to_owned(), dir.join(path))]);
    }
    let dir_text = dir.to_string_lossy();
    let whole = Path::new(&Pattern::escape(&dir_text)).join(path);
    let paths = glob::glob_with(&whole.to_string_lossy(), OPTIONS).map_err(|error| bad(source, &error))?;
    let mut files = Vec::new();
    for path in paths {
        let path =
            path.map_err(|error| FilesError::Io { pattern: source.to_owned(), source: error.into() })?;
        if path.is_dir() {
            continue;
        }
        if files.len() == MAX_FILES {
            return Err(FilesError::TooMany(source.to_owned()));
        }
        let name = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().into_owned();
        files.push((name, path));
    }
    if files.is_empty() { Err(FilesError::None(source.to_owned())) } else { Ok(files) }
}

/// The names that match a pattern, sorted; for places other than this machine's folders.
///
/// # Errors
/// As [`expand`].
pub fn matching(pattern: &str, names: impl IntoIterator<Item = String>) -> Result<Vec<String>, FilesError> {
    let compiled = Pattern::new(pattern).map_err(|error| bad(pattern, &error))?;
    let mut found: Vec<String> =
        names.into_iter().filter(|name| compiled.matches_with(name, OPTIONS)).take(MAX_FILES + 1).collect();
    found.sort_unstable();
    match found.len() {
        0 => Err(FilesError::None(pattern.to_owned())),
        n if n > MAX_FILES => Err(FilesError::TooMany(pattern.to_owned())),
        _ => Ok(found),
    }
}

fn bad(pattern: &str, error: &glob::PatternError) -> FilesError {
    FilesError::Pattern { pattern: pattern.to_owned(), message: error.msg.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn patterns_give_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a[1]/deep")).unwrap();
        for name in ["b.jsonl", "a.jsonl", "c.txt", ".hidden.jsonl", "deep/d.jsonl"] {
            fs::write(dir.path().join("a[1]").join(name), "").unwrap();
        }
        let dir = dir.path().join("a[1]");
        let names = |source: &str| {
            expand(source, &dir).unwrap().into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(names("*.jsonl"), ["a.jsonl", "b.jsonl"]);
        assert_eq!(names("**/*.jsonl"), ["a.jsonl", "b.jsonl", "deep/d.jsonl"]);
        assert_eq!(names("missing.jsonl"), ["missing.jsonl"]);
        assert_eq!(expand("file:///x/y.jsonl", &dir).unwrap()[0].1, Path::new("/x/y.jsonl"));
        assert!(is_elsewhere("s3://x/y") && !is_elsewhere("file:///x") && !is_elsewhere("x"));
        assert!(expand("*.csv", &dir).unwrap_err().to_string().contains("no file matches '*.csv'"));
        assert!(expand("[", &dir).unwrap_err().to_string().contains("no pattern"));
    }

    #[test]
    fn a_path_that_looks_like_a_pattern_is_a_path_where_it_exists() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x[1].jsonl"), "").unwrap();
        assert_eq!(expand("x[1].jsonl", dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn names_elsewhere_match_likewise() {
        let names = ["t/b.jsonl", "t/a.jsonl", "t/x/c.jsonl"].map(str::to_owned);
        assert_eq!(matching("t/*.jsonl", names.clone()).unwrap(), ["t/a.jsonl", "t/b.jsonl"]);
        assert!(matching("u/*", names).is_err());
    }
}
