//! Garbage: what checkpoints left that were begun and never became whole.

use std::collections::BTreeMap;

use crate::{CheckpointId, JobId, Object, Path, Result, Store, StoreError, layout};

/// Deletes what is left of checkpoints that are not whole, where `is_dead` says that nobody writes them any more.
/// Returns which those were.
///
/// # Errors
/// Those of [`Store::list`] and [`Store::delete`]; [`StoreError::Local`] where the store is a folder.
pub async fn sweep_torn(
    store: &Store,
    job: &JobId,
    is_dead: impl Fn(&CheckpointId) -> bool,
) -> Result<Vec<CheckpointId>> {
    let mut swept = Vec::new();
    for (id, objects) in by_checkpoint(store, job).await? {
        let manifest = layout::manifest(job, &id);
        if objects.iter().any(|object| object.path == manifest) || !is_dead(&id) {
            continue;
        }
        for object in objects {
            store.delete(&object.path).await?;
        }
        store.remove_folder(&layout::checkpoint(job, &id))?;
        swept.push(id);
    }
    Ok(swept)
}

/// Everything below a job's checkpoints, by checkpoint; in a folder also what no listing shows.
async fn by_checkpoint(store: &Store, job: &JobId) -> Result<BTreeMap<CheckpointId, Vec<Object>>> {
    let folder = layout::checkpoints(job);
    let mut found: BTreeMap<CheckpointId, Vec<Object>> = BTreeMap::new();
    for object in store.list(&folder).await? {
        let name = object.path.prefix_match(&folder).and_then(|mut parts| parts.next());
        if let Some(id) = name.and_then(|name| name.as_ref().parse().ok()) {
            found.entry(id).or_default().push(object);
        }
    }
    for name in store.folder_names(&folder)? {
        if let Ok(id) = name.parse() {
            found.entry(id).or_default();
        }
    }
    Ok(found)
}

impl Store {
    /// Names in a folder of this machine; none where the store is no folder.
    fn folder_names(&self, folder: &Path) -> Result<Vec<String>> {
        let Some(path) = self.local(folder) else { return Ok(Vec::new()) };
        match std::fs::read_dir(&path) {
            Ok(entries) => {
                Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(StoreError::Local { path, source }),
        }
    }

    /// Where the store is a folder: removes one in it with all that a killed process left half-written, which no listing
    /// shows.
    pub(crate) fn remove_folder(&self, folder: &Path) -> Result<()> {
        let Some(path) = self.local(folder) else { return Ok(()) };
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::Local { path, source: error })
            }
            _ => Ok(()),
        }
    }

    fn local(&self, path: &Path) -> Option<std::path::PathBuf> {
        Some(path.parts().fold(self.folder()?.to_path_buf(), |folder, part| folder.join(part.as_ref())))
    }
}
