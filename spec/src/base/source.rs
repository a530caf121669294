//! Where a job file says that a base is: a folder, the Hugging Face hub, or a store.

use std::path::{Path, PathBuf};

/// Characters of a hub id's part or of a revision.
const MAX_PART: usize = 96;

/// A base's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseSource {
    /// A folder on this machine.
    Folder(PathBuf),
    /// `organisation/name`, or `organisation/name@revision`, on the Hugging Face hub.
    Hub(HubId),
    /// A folder in a store: `s3://bucket/folder`.
    Url(String),
}

/// A model on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `organisation/name`.
    pub id: String,
    /// A branch, tag or commit; none: `main`.
    pub revision: Option<String>,
}

impl BaseSource {
    /// Reads the `base` of a job file that lies in `folder`. A folder that is there wins over a hub id of the same name.
    pub fn parse(source: &str, folder: &Path) -> Self {
        if let Some(path) = source.strip_prefix("file://").filter(|path| path.starts_with('/')) {
            return Self::Folder(path.into());
        }
        if source.contains("://") {
            return Self::Url(source.to_owned());
        }
        let path = folder.join(source);
        match HubId::parse(source) {
            Some(id) if !path.exists() => Self::Hub(id),
            _ => Self::Folder(path),
        }
    }
}

impl HubId {
    /// Reads `organisation/name` or `organisation/name@revision`.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let (organisation, name) = id.split_once('/')?;
        let revision_part = |part: &str| is_plain(part);
        let plain = is_plain(organisation) && is_plain(name);
        // A branch may have slashes: refs/pr/1.
        let revision_is_plain = revision.is_none_or(|revision| revision.split('/').all(revision_part));
        (plain && revision_is_plain)
            .then(|| Self { id: id.to_owned(), revision: revision.map(str::to_owned) })
    }

    /// The branch, tag or commit that is meant.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The same model at a commit.
    pub fn at(&self, commit: &str) -> Self {
        Self { id: self.id.clone(), revision: Some(commit.to_owned()) }
    }
}

impl std::fmt::Display for HubId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.id),
            None => f.write_str(&self.id),
        }
    }
}

/// One part of an id: no path that leads elsewhere, nothing that a URL would read otherwise.
fn is_plain(part: &str) -> bool {
    (1..=MAX_PART).contains(&part.len())
        && !part.starts_with('.')
        && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(id: &str, revision: Option<&str>) -> BaseSource {
        BaseSource::Hub(HubId { id: id.to_owned(), revision: revision.map(str::to_owned) })
    }

    #[test]
    fn places_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("models/mine")).unwrap();
        let parse = |source| BaseSource::parse(source, dir.path());
        assert_eq!(parse("Qwen/Qwen3-0.6B"), hub("Qwen/Qwen3-0.6B", None));
        assert_eq!(parse("Qwen/Qwen3-0.6B@c1899de"), hub("Qwen/Qwen3-0.6B", Some("c1899de")));
        assert_eq!(parse("a/b@refs/pr/3"), hub("a/b", Some("refs/pr/3")));
        assert_eq!(parse("models/mine"), BaseSource::Folder(dir.path().join("models/mine")));
        for folder in ["./base", "../base", "base", "/models/x/y", "a/b/c", "a/b@../c"] {
            assert_eq!(parse(folder), BaseSource::Folder(dir.path().join(folder)), "{folder}");
        }
        assert_eq!(parse("file:///models/x"), BaseSource::Folder("/models/x".into()));
        assert_eq!(parse("s3://bucket/x"), BaseSource::Url("s3://bucket/x".to_owned()));
    }

    #[test]
    fn an_id_is_written_as_it_is_read() {
        for text in ["a/b", "a/b@main"] {
            assert_eq!(HubId::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(HubId::parse("a/b").unwrap().at("c0ffee").to_string(), "a/b@c0ffee");
    }
}
