//! Whole bases: found, and copied to this machine with every digest checked.

use std::path::Path as FilePath;

use crate::{Digest, Result, Store, StoreError, Sums, layout};

/// Bytes that a SHA256SUMS may have.
const SUMS_LIMIT: u64 = 1 << 20;

/// Whether the base is whole: its SHA256SUMS is there, which is written last.
///
/// # Errors
/// Those of [`Store::size`].
pub async fn base_is_whole(store: &Store, digest: &Digest) -> Result<bool> {
    Ok(store.size(&layout::base_sums(digest)).await?.is_some())
}

/// The files of a base.
///
/// # Errors
/// [`StoreError::NotFound`] when the base is not whole, [`StoreError::Damaged`] when its list does not have the
/// digest, and those of [`Store::get`].
pub async fn read_sums(store: &Store, digest: &Digest) -> Result<Sums> {
    let path = layout::base_sums(digest);
    let text = store.get(&path, SUMS_LIMIT).await?;
    let found = Digest::of(&text);
    let damaged = |reason: String| StoreError::Damaged { path: path.clone(), reason };
    if found != *digest {
        return Err(damaged(format!("its sha256 is {found}")));
    }
    let text = std::str::from_utf8(&text).map_err(|error| damaged(error.to_string()))?;
    Sums::parse(text).map_err(|source| StoreError::Sums { path: path.clone(), source })
}

/// Copies a base into a folder, checks every digest, and writes SHA256SUMS there last. A folder that has it already is
/// whole and left alone.
///
/// # Errors
/// Those of [`read_sums`] and [`Store::download`].
pub async fn download_base(store: &Store, digest: &Digest, dir: &FilePath) -> Result<()> {
    let sums_file = dir.join(layout::SUMS);
    if tokio::fs::read(&sums_file).await.is_ok_and(|text| Digest::of(&text) == *digest) {
        return Ok(());
    }
    let sums = read_sums(store, digest).await?;
    let local = |source| StoreError::Local { path: dir.to_path_buf(), source };
    tokio::fs::create_dir_all(dir).await.map_err(local)?;
    for (name, file_digest) in sums.files() {
        let file = dir.join(name.as_str());
        store.download(&layout::base_file(digest, name), file_digest, &file).await?;
    }
    store.download(&layout::base_sums(digest), digest, &sums_file).await.map(drop)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::FileName;

    async fn stored_base(store: &Store) -> Digest {
        let files = [("config.json", "{}"), ("model.safetensors", "weights")];
        let name = |text: &str| text.parse::<FileName>().unwrap();
        let sums = files.iter().map(|(file, text)| (name(file), Digest::of(text.as_bytes()))).collect();
        let sums = Sums::new(sums).unwrap();
        for (file, text) in files {
            let path = layout::base_file(&sums.digest(), &name(file));
            store.put(&path, Bytes::from_static(text.as_bytes())).await.unwrap();
        }
        assert!(!base_is_whole(store, &sums.digest()).await.unwrap());
        store.put(&layout::base_sums(&sums.digest()), sums.to_text().into()).await.unwrap();
        sums.digest()
    }

    #[tokio::test]
    async fn a_whole_base_is_copied() {
        let (store, dir) = (Store::open("memory://").unwrap(), tempfile::tempdir().unwrap());
        let digest = stored_base(&store).await;
        assert!(base_is_whole(&store, &digest).await.unwrap());
        for _ in 0..2 {
            download_base(&store, &digest, dir.path()).await.unwrap();
            let text = std::fs::read_to_string(dir.path().join("model.safetensors")).unwrap();
            assert_eq!(text, "weights");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[tokio::test]
    async fn a_damaged_base_is_not() {
        let (store, dir) = (Store::open("memory://").unwrap(), tempfile::tempdir().unwrap());
        let digest = stored_base(&store).await;
        let path = layout::base_file(&digest, &"model.safetensors".parse().unwrap());
        store.put(&path, Bytes::from_static(b"wEights")).await.unwrap();
        let error = download_base(&store, &digest, dir.path()).await.unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { path: at, .. } if *at == path), "{error}");
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["config.json"]);
        let missing = download_base(&store, &Digest::of(b"other"), dir.path()).await.unwrap_err();
        assert!(missing.is_not_found());
    }
}
