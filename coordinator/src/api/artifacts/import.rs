//! Data sets from other object stores: copied into ours, checked, and named by their digests.

use std::{fs::File, io::Read as _};

use bytes::Bytes;
use lorafleet_proto::v1 as pb;
use lorafleet_spec::data::{DataError, Rules, is_pattern, matching};
use lorafleet_store::{Digest, Hasher, Path, Store, layout};
use tokio::io::AsyncWriteExt as _;

use super::{
    ApiError, CHUNK,
    content::{self, check_file, scratch},
    upload::DATASET_LIMIT,
};

/// Where data sets may lie. Not `file`: a request must not read what lies on the coordinator's own disk.
const SCHEMES: [&str; 8] = ["s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "memory"];
/// Files that one import may copy.
const MAX_FILES: usize = 1024;

/// Copies what a URL names.
pub(super) async fn import(
    store: &Store,
    request: pb::ImportDataRequest,
) -> Result<pb::ImportDataResponse, ApiError> {
    let url = request.url.as_str();
    let rules = content::rules("data", &request.data.unwrap_or_default())?;
    let source = Source::open(url)?;
    let mut answer = pb::ImportDataResponse::default();
    for name in source.files().await? {
        let own_url = format!("{}{name}", source.folder);
        let (digest, examples, size) = copy(store, &source.store, &name, &own_url, &rules).await?;
        answer.files.push(pb::DataRef { source: own_url, sha256: digest.to_string() });
        answer.examples += examples;
        answer.size_bytes += size;
    }
    tracing::info!(url, files = answer.files.len(), examples = answer.examples, "data set imported");
    Ok(answer)
}

/// Where a data set lies.
struct Source {
    /// URL of the folder that holds all of it, with its last slash.
    folder: String,
    store: Store,
    /// A file in it, or a pattern.
    file: String,
}

impl Source {
    fn open(url: &str) -> Result<Self, ApiError> {
        let bad = |message: String| ApiError::field("url", message);
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(bad(format!("'{url}' is no URL of an object store")));
        };
        if !SCHEMES.contains(&scheme) {
            let known = "s3, gs and az are; upload files of this machine instead";
            return Err(bad(format!("'{url}': data sets in {scheme} are not read; those in {known}")));
        }
        // The folder ends before the first part that is a pattern, or the last.
        let mut start = 0;
        for (slash, _) in rest.match_indices('/') {
            if is_pattern(&rest[start..slash]) {
                break;
            }
            start = slash + 1;
        }
        let (folder, file) = rest.split_at(start);
        if folder.len() < 2 || file.is_empty() {
            return Err(bad(format!("'{url}' names no file: give {scheme}://bucket/path/to/file")));
        }
        let folder = format!("{scheme}://{folder}");
        let store = Store::open(folder.trim_end_matches('/')).map_err(|error| bad(error.to_string()))?;
        Ok(Self { folder, store, file: file.to_owned() })
    }

    /// Names of the files below the folder.
    async fn files(&self) -> Result<Vec<String>, ApiError> {
        if !is_pattern(&self.file) {
            return Ok(vec![self.file.clone()]);
        }
        let all = self.store.list(&Path::from("")).await?;
        let names = all.into_iter().map(|object| object.path.to_string());
        let found = matching(&self.file, names).map_err(|error| ApiError::field("url", error.to_string()))?;
        if found.len() > MAX_FILES {
            return Err(ApiError::field(
                "url",
                format!("{} files match; {MAX_FILES} are allowed", found.len()),
            ));
        }
        Ok(found)
    }
}

/// Copies one file: into a file of this machine first, where it is checked.
async fn copy(
    store: &Store,
    from: &Store,
    name: &str,
    url: &str,
    rules: &Rules,
) -> Result<(Digest, u64, u64), ApiError> {
    let bad = |message: String| ApiError::field("url", message);
    let mut reader = match from.read(&Path::from(name)).await {
        Err(error) if error.is_not_found() => return Err(bad(format!("'{url}' is not there"))),
        other => other?,
    };
    let size = reader.size();
    if size > DATASET_LIMIT {
        return Err(bad(format!("'{url}' has {size} bytes, above the limit of {DATASET_LIMIT}")));
    }
    let mut file = tokio::fs::File::from_std(tempfile::tempfile().map_err(scratch)?);
    let mut hasher = Hasher::new();
    while let Some(bytes) = reader.next().await? {
        hasher.update(&bytes);
        file.write_all(&bytes).await.map_err(scratch)?;
    }
    file.flush().await.map_err(scratch)?;
    let (digest, file) = (hasher.finish(), file.into_std().await);
    let copy = file.try_clone().map_err(scratch)?;
    let examples = check_file(copy, name, rules).await?.map_err(|error| match error {
        DataError::Io { source, .. } => scratch(source),
        other => bad(format!("'{url}': {other}")),
    })?;
    put(store, &digest, file).await?;
    Ok((digest, examples, size))
}

/// Puts a data set into our store, unless it is there.
async fn put(store: &Store, digest: &Digest, mut file: File) -> Result<(), ApiError> {
    let path = layout::dataset(digest);
    if store.size(&path).await?.is_some() {
        return Ok(());
    }
    std::io::Seek::rewind(&mut file).map_err(scratch)?;
    let mut upload = store.upload(&path);
    loop {
        // Pages just written: reading them back does not wait for a disk.
        let mut piece = vec![0; CHUNK];
        let n = file.read(&mut piece).map_err(scratch)?;
        if n == 0 {
            return Ok(upload.finish().await?);
        }
        piece.truncate(n);
        upload.write(Bytes::from(piece)).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"text": "a", "label": "x"}"#;

    async fn there(name: &str, text: &str) -> String {
        let store = Store::open(&format!("memory://{name}/data")).unwrap();
        for file in ["b.jsonl", "a.jsonl", "deep/c.jsonl"] {
            store.put(&Path::from(file), Bytes::from(text.to_owned())).await.unwrap();
        }
        format!("memory://{name}/data")
    }

    async fn run(url: String) -> Result<(Store, pb::ImportDataResponse), String> {
        let store = Store::open("memory://").unwrap();
        let request = pb::ImportDataRequest { url, data: None };
        let answer = import(&store, request).await.map_err(|error| error.to_string())?;
        Ok((store, answer))
    }

    #[tokio::test]
    async fn files_are_copied_and_pinned() {
        let from = Store::open("memory://pinned/data").unwrap();
        for (file, n) in [("b.jsonl", 2), ("a.jsonl", 1), ("deep/c.jsonl", 3)] {
            from.put(&Path::from(file), Bytes::from(format!("{LINE}\n").repeat(n))).await.unwrap();
        }
        let (store, answer) = run("memory://pinned/data/*.jsonl".into()).await.unwrap();
        let names: Vec<_> = answer.files.iter().map(|file| file.source.as_str()).collect();
        assert_eq!(names, ["memory://pinned/data/a.jsonl", "memory://pinned/data/b.jsonl"]);
        assert_eq!(answer.examples, 3);
        for file in &answer.files {
            let digest: Digest = file.sha256.parse().unwrap();
            let bytes = store.get(&layout::dataset(&digest), 1 << 20).await.unwrap();
            assert_eq!(Digest::of(&bytes), digest);
        }
        let (_, one) = run("memory://pinned/data/b.jsonl".into()).await.unwrap();
        assert_eq!((one.files.len(), one.examples), (1, 2));
        let (_, deep) = run("memory://pinned/data/**/*.jsonl".into()).await.unwrap();
        assert_eq!(deep.files.len(), 3);
    }

    #[tokio::test]
    async fn what_cannot_be_imported_says_why() {
        let url = there("refused", "nonsense").await;
        for (url, wanted) in [
            (format!("{url}/a.jsonl"), "a.jsonl': line 1 is not JSON"),
            (format!("{url}/missing.jsonl"), "missing.jsonl' is not there"),
            (format!("{url}/*.csv"), "no file matches '*.csv'"),
            ("file:///etc/passwd".into(), "data sets in file are not read"),
            ("nonsense".into(), "is no URL"),
            ("s3://bucket".into(), "names no file"),
        ] {
            let error = run(url.clone()).await.unwrap_err();
            assert!(error.contains(wanted), "{url}: {error}");
        }
    }
}
