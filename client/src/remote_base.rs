//! A base that lies in a store of its own (`s3://bucket/folder`), copied to this machine with this machine's credentials.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use lorafleet_spec::{FieldError, base::needed_files, digest};
use lorafleet_store::{Path as Place, Store, StoreError};

use crate::{artifacts::ProgressFor, error::ClientError};

const INDEX: &str = "model.safetensors.index.json";
/// Bytes of an index of shards.
const MAX_INDEX: u64 = 64 << 20;

/// Copies a base from the store at `url` into a folder under `cache`, and returns that. Nothing tells whether what lies
/// there has changed, so it is copied each time; a job file that gives `base.sha256` needs no copy.
///
/// # Errors
/// `Invalid` when the store cannot be read or holds no base; `File`.
pub(crate) async fn fetch(
    url: &str,
    cache: &Path,
    progress: ProgressFor<'_>,
) -> Result<PathBuf, ClientError> {
    let invalid = |message: String| {
        ClientError::invalid("the base cannot be fetched:", vec![FieldError::new("base", message)])
    };
    let failed = |error: StoreError| invalid(format!("{url}: {error}"));
    let store = Store::open(url).map_err(failed)?;
    let objects = store.list(&Place::default()).await.map_err(failed)?;
    let sizes: Vec<(String, u64)> =
        objects.into_iter().map(|object| (object.path.to_string(), object.size)).collect();
    let names: Vec<String> = sizes.iter().map(|(name, _)| name.clone()).collect();
    let index = match names.iter().any(|name| name == INDEX) {
        true => Some(store.get(&Place::from(INDEX), MAX_INDEX).await.map_err(failed)?),
        false => None,
    };
    let index = index.map(|index| String::from_utf8_lossy(&index).into_owned());
    let needed =
        needed_files(&names, index.as_deref()).map_err(|error| invalid(format!("{url}: {error}")))?;
    let dir = cache.join("urls").join(digest::sha256_hex(url.as_bytes()));
    fs::create_dir_all(&dir).map_err(ClientError::file(&dir))?;
    clear(&dir, &needed)?;
    for name in &needed {
        let size = sizes.iter().find(|(found, _)| found == name).map_or(0, |(_, size)| *size);
        let told = progress(name, size);
        let path = dir.join(name);
        let part = dir.join(format!(".{name}.{}", std::process::id()));
        let mut file = File::create(&part).map_err(ClientError::file(&part))?;
        let mut reader = store.read(&Place::from(name.as_str())).await.map_err(failed)?;
        let mut written = 0;
        while let Some(bytes) = reader.next().await.map_err(failed)? {
            file.write_all(&bytes).map_err(ClientError::file(&part))?;
            written += bytes.len() as u64;
            told(written);
        }
        fs::rename(&part, &path).map_err(ClientError::file(&path))?;
    }
    Ok(dir)
}

/// Removes what an earlier copy had and this one will not have.
fn clear(dir: &Path, needed: &[String]) -> Result<(), ClientError> {
    for entry in fs::read_dir(dir).map_err(ClientError::file(dir))?.flatten() {
        if !needed.iter().any(|name| entry.file_name() == name.as_str()) {
            fs::remove_file(entry.path()).map_err(ClientError::file(entry.path()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lorafleet_spec::base::base_files;

    use super::*;
    use crate::Progress;

    fn quiet(_: &str, _: u64) -> Progress {
        Arc::new(|_| {})
    }

    fn example() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/base")
    }

    #[tokio::test]
    async fn a_base_is_copied_and_nothing_else() {
        // A named store in memory is one for the whole process.
        let url = "memory:///remote-base-copied";
        let store = Store::open(url).unwrap();
        for name in base_files(&example()).unwrap() {
            store
                .put(&Place::from(name.as_str()), fs::read(example().join(&name)).unwrap().into())
                .await
                .unwrap();
        }
        store.put(&Place::from("README.md"), "no part of it".into()).await.unwrap();
        let cache = tempfile::tempdir().unwrap();
        let dir = fetch(url, cache.path(), &quiet).await.unwrap();
        let names = base_files(&dir).unwrap();
        assert_eq!(names, base_files(&example()).unwrap());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), names.len());
        for name in names {
            assert_eq!(
                fs::read(dir.join(&name)).unwrap(),
                fs::read(example().join(&name)).unwrap(),
                "{name}"
            );
        }
        // The next copy has what lies there then.
        store.delete(&Place::from("chat_template.jinja")).await.unwrap();
        fetch(url, cache.path(), &quiet).await.unwrap();
        assert!(!dir.join("chat_template.jinja").exists());
    }

    #[tokio::test]
    async fn what_is_no_base_is_told() {
        let cache = tempfile::tempdir().unwrap();
        let error = fetch("memory:///remote-base-empty", cache.path(), &quiet).await.unwrap_err().to_string();
        assert!(error.contains("base: memory:///remote-base-empty: config.json is missing"), "{error}");
        let error = fetch("ftp://host/base", cache.path(), &quiet).await.unwrap_err().to_string();
        assert!(error.contains("is no known kind of store"), "{error}");
    }
}
