//! Checkpoints that are whole or not there: files first, then the manifest, last and only if absent.

use std::collections::BTreeMap;

use bytes::Bytes;
use lorafleet_proto::v1 as pb;

use crate::{
    CheckpointId, Contents, Digest, FileEntry, FileName, JobId, Manifest, Path, Put, Result, Store,
    StoreError, contents, layout,
};

/// Bytes that a manifest may have.
const MANIFEST_LIMIT: u64 = 1 << 20;
/// How often the manifest is put and read back before the store is called unavailable.
const MANIFEST_ATTEMPTS: u32 = 5;

/// What a checkpoint is, apart from its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// The job.
    pub job: JobId,
    /// The last step that it holds.
    pub step: u64,
    /// The fence under which it is written.
    pub fence: pb::Fence,
    /// The checkpoint that the job's attempt resumed from.
    pub parent: Option<CheckpointId>,
    /// It is the job's result.
    pub is_final: bool,
    /// sha256 of the job's stored spec.
    pub spec_sha256: Digest,
    /// The writing worker's kind.
    pub kind: String,
    /// Fractional bits of the exact sums; 0 where they are not exact.
    pub scale_bits: u32,
}

/// A whole checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its manifest.
    pub manifest: Manifest,
    /// sha256 of manifest.json.
    pub manifest_sha256: Digest,
}

impl Checkpoint {
    /// Step and fence.
    pub fn id(&self) -> &CheckpointId {
        &self.manifest.checkpoint
    }

    /// As the API lists it; `create_time` and `best` are left to whoever keeps them.
    pub fn to_proto(&self) -> pb::Checkpoint {
        let files = self.manifest.files.iter().map(|(name, file)| pb::CheckpointFile {
            name: name.to_string(),
            size_bytes: file.size_bytes,
            sha256: file.sha256.to_string(),
        });
        pb::Checkpoint {
            name: self.id().resource_name(&self.manifest.job),
            step: self.id().step(),
            create_time: None,
            files: files.collect(),
            manifest_sha256: self.manifest_sha256.to_string(),
            r#final: self.manifest.is_final,
            best: false,
        }
    }

    /// The one whose manifest was found where this one's should be, if both hold the same state. Members of a gang may
    /// write one after the other; of its parent and their kind each tells what it knows.
    fn or_its_equal(self, found: &[u8], path: Path) -> Result<Checkpoint> {
        let Manifest { job, checkpoint, parent, kind, .. } = &self.manifest;
        let found = Checkpoint::parse(found, job, checkpoint)?;
        let told = Manifest { parent: parent.clone(), kind: kind.clone(), ..found.manifest.clone() };
        if told == self.manifest { Ok(found) } else { Err(StoreError::Conflict { path }) }
    }

    fn parse(bytes: &[u8], job: &JobId, id: &CheckpointId) -> Result<Checkpoint> {
        let path = layout::manifest(job, id);
        let manifest =
            Manifest::parse(bytes).and_then(|manifest| manifest.belongs_to(job, id).map(|()| manifest));
        let manifest = manifest.map_err(|source| StoreError::Manifest { path, source })?;
        Ok(Checkpoint { manifest, manifest_sha256: Digest::of(bytes) })
    }
}

/// Writes a checkpoint. When it returns, the checkpoint is whole; when it fails or is cut off at any point, no
/// checkpoint is listed. Calling it again with the same contents is the way to go on after a failure, and returns the
/// same when it had succeeded already.
///
/// Contents are made and hashed on the calling thread while they are uploaded, in bounded memory: it should be a thread
/// that nobody waits for.
///
/// # Errors
/// [`StoreError::Conflict`] when another process wrote other files under this fence, [`StoreError::Id`] and
/// [`StoreError::Manifest`] for a draft that cannot be stored, [`StoreError::Refused`], [`StoreError::Unavailable`].
pub async fn write_checkpoint<C: Contents>(
    store: &Store,
    draft: &Draft,
    files: &BTreeMap<FileName, C>,
) -> Result<Checkpoint> {
    let id = CheckpointId::new(draft.step, &draft.fence)?;
    let place = layout::manifest(&draft.job, &id);
    // What cannot be stored is refused before anything is.
    let entry = |contents: &C| FileEntry { size_bytes: contents.size(), sha256: Digest::of(&[]) };
    let sketch = files.iter().map(|(name, contents)| (name.clone(), entry(contents))).collect();
    text(&manifest(draft, &id, sketch), &place)?;

    // A whole checkpoint's files are never touched again.
    let found = read_back(store, &place).await?;
    point("checkpoint-before-files", draft.step, &place)?;
    let mut entries = BTreeMap::new();
    for (name, contents) in files {
        if !entries.is_empty() {
            point("checkpoint-between-files", draft.step, &place)?;
        }
        let sha256 = match &found {
            Some(_) => contents::digest(contents),
            None => store.put_contents(&layout::checkpoint_file(&draft.job, &id, name), contents).await?,
        };
        entries.insert(name.clone(), FileEntry { size_bytes: contents.size(), sha256 });
    }
    let manifest = manifest(draft, &id, entries);
    let bytes = text(&manifest, &place)?;
    let ours = Checkpoint { manifest, manifest_sha256: Digest::of(&bytes) };
    if let Some(found) = found {
        return ours.or_its_equal(&found, place);
    }
    check_sizes(store, &ours).await?;
    point("checkpoint-before-manifest", draft.step, &place)?;
    put_manifest(store, ours, place, bytes).await
}

/// Whether all files of a checkpoint lie in the store with their sizes; what is in them is checked when they are read.
///
/// # Errors
/// Those of [`Store::list`].
pub async fn files_are_there(store: &Store, checkpoint: &Checkpoint) -> Result<bool> {
    Ok(wrong_size(store, checkpoint).await?.is_none())
}

/// A store may say that it took an object of which it has a half: what was just written is looked at before the manifest
/// says that it is there.
async fn check_sizes(store: &Store, checkpoint: &Checkpoint) -> Result<()> {
    match wrong_size(store, checkpoint).await? {
        None => Ok(()),
        Some((path, reason)) => Err(StoreError::Unavailable { action: "write", path, attempts: 1, reason }),
    }
}

/// The first file that is not in the store as long as the manifest says.
async fn wrong_size(store: &Store, checkpoint: &Checkpoint) -> Result<Option<(Path, String)>> {
    let Manifest { job, checkpoint: id, files, .. } = &checkpoint.manifest;
    let objects = store.list(&layout::checkpoint(job, id)).await?;
    for (name, entry) in files {
        let path = layout::checkpoint_file(job, id, name);
        let found = objects.iter().find(|object| object.path == path).map(|object| object.size);
        if found != Some(entry.size_bytes) {
            let reason = format!("of {} bytes it has {}", entry.size_bytes, found.unwrap_or(0));
            return Ok(Some((path, reason)));
        }
    }
    Ok(None)
}

/// Where a test cuts the writer off.
fn point(name: &str, step: u64, place: &Path) -> Result<()> {
    let unavailable = |injected: lorafleet_failpoint::Injected| {
        let (path, reason) = (place.clone(), injected.to_string());
        StoreError::Unavailable { action: "write", path, attempts: 1, reason }
    };
    lorafleet_failpoint::reach(name, step).map_err(unavailable)
}

fn text(manifest: &Manifest, place: &Path) -> Result<Bytes> {
    let bad = |source| StoreError::Manifest { path: place.clone(), source };
    manifest.to_bytes().map(Bytes::from).map_err(bad)
}

/// The step that makes it whole.
async fn put_manifest(store: &Store, ours: Checkpoint, place: Path, bytes: Bytes) -> Result<Checkpoint> {
    for _ in 0..MANIFEST_ATTEMPTS {
        match store.put_if_absent(&place, bytes.clone()).await? {
            Put::Written => return Ok(ours),
            Put::Existed => {
                // An earlier try succeeded and its answer was lost, or another member wrote the same state. Nothing
                // there: a conflict with a writer that did not finish, or with a deletion.
                if let Some(found) = read_back(store, &place).await? {
                    return ours.or_its_equal(&found, place);
                }
            }
        }
    }
    let reason = "the store says that it exists, and that it does not".to_owned();
    Err(StoreError::Unavailable { action: "write", path: place, attempts: MANIFEST_ATTEMPTS, reason })
}

async fn read_back(store: &Store, place: &Path) -> Result<Option<Bytes>> {
    match store.get(place, MANIFEST_LIMIT).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Hashing large files would hold up other tasks, so it has a thread of its own.
async fn digest(bytes: Bytes) -> Digest {
    let hash = move || Digest::of(&bytes);
    tokio::task::spawn_blocking(hash).await.expect("hashing does not panic and is never cancelled")
}

fn manifest(draft: &Draft, checkpoint: &CheckpointId, files: BTreeMap<FileName, FileEntry>) -> Manifest {
    Manifest {
        version: Manifest::VERSION,
        job: draft.job.clone(),
        next_step: checkpoint.step() + 1,
        checkpoint: checkpoint.clone(),
        parent: draft.parent.clone(),
        is_final: draft.is_final,
        spec_sha256: draft.spec_sha256,
        kind: draft.kind.clone(),
        scale_bits: draft.scale_bits,
        files,
    }
}

/// The checkpoint's manifest; nothing when it is not whole.
///
/// # Errors
/// [`StoreError::Manifest`] when it cannot be used, [`StoreError::Refused`], [`StoreError::Unavailable`].
pub async fn find_checkpoint(store: &Store, job: &JobId, id: &CheckpointId) -> Result<Option<Checkpoint>> {
    match read_back(store, &layout::manifest(job, id)).await? {
        Some(bytes) => Checkpoint::parse(&bytes, job, id).map(Some),
        None => Ok(None),
    }
}

/// Reads a whole checkpoint with all its files, every size and digest checked.
///
/// # Errors
/// [`StoreError::NotFound`] when it or one of its files is not there, [`StoreError::Damaged`] when a file is not what
/// the manifest says, and those of [`find_checkpoint`].
pub async fn read_checkpoint(
    store: &Store,
    job: &JobId,
    id: &CheckpointId,
) -> Result<(Checkpoint, BTreeMap<FileName, Bytes>)> {
    let not_found = || StoreError::NotFound { path: layout::manifest(job, id) };
    let checkpoint = find_checkpoint(store, job, id).await?.ok_or_else(not_found)?;
    let mut files = BTreeMap::new();
    for (name, entry) in &checkpoint.manifest.files {
        let path = layout::checkpoint_file(job, id, name);
        let damaged = |reason: String| StoreError::Damaged { path: path.clone(), reason };
        let bytes = match store.get(&path, entry.size_bytes).await {
            Err(StoreError::TooLarge { size, .. }) => {
                Err(damaged(format!("it has {size} bytes, not {}", entry.size_bytes)))
            }
            other => other,
        }?;
        if bytes.len() as u64 != entry.size_bytes {
            return Err(damaged(format!("it has {} bytes, not {}", bytes.len(), entry.size_bytes)));
        }
        let found = digest(bytes.clone()).await;
        if found != entry.sha256 {
            return Err(damaged(format!("its sha256 is {found}, not {}", entry.sha256)));
        }
        files.insert(name.clone(), bytes);
    }
    Ok((checkpoint, files))
}

/// The job's whole checkpoints, newest first: by step, then attempt, then generation.
///
/// # Errors
/// Those of [`Store::list`].
pub async fn list_checkpoints(store: &Store, job: &JobId) -> Result<Vec<CheckpointId>> {
    let folder = layout::checkpoints(job);
    let objects = store.list(&folder).await?;
    let mut ids: Vec<CheckpointId> = objects
        .iter()
        .filter_map(|object| {
            let mut parts = object.path.prefix_match(&folder)?;
            let id = parts.next()?.as_ref().parse().ok()?;
            let is_manifest = parts.next()?.as_ref() == layout::MANIFEST && parts.next().is_none();
            is_manifest.then_some(id)
        })
        .collect();
    ids.sort_by(|a, b| b.cmp(a));
    Ok(ids)
}

/// Deletes a checkpoint: the manifest first, so that it is never whole by name only. What a cut-off deletion leaves is
/// deleted by calling it again; a checkpoint that is not there is no error.
///
/// # Errors
/// Those of [`Store::list`] and [`Store::delete`].
pub async fn delete_checkpoint(store: &Store, job: &JobId, id: &CheckpointId) -> Result<()> {
    store.delete(&layout::manifest(job, id)).await?;
    for object in store.list(&layout::checkpoint(job, id)).await? {
        store.delete(&object.path).await?;
    }
    store.remove_folder(&layout::checkpoint(job, id))
}
