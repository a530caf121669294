//! A model's files on this machine, on their way to the store.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use lorafleet_store::{Contents, FileName, StoreError};
use tracing::warn;

/// Bytes that are read at once.
const PIECE: usize = 4 << 20;

/// Files of a checkpoint that are to be written.
pub(super) type Files<'a> = BTreeMap<FileName, Box<dyn Contents + 'a>>;

/// A folder of files that nobody writes to any more; gone when this is.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
}

impl Folder {
    /// Takes a folder over.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Its files, to be read as often as need be.
    ///
    /// # Errors
    /// [`StoreError::Local`] when it cannot be listed.
    pub(super) fn contents(&self) -> Result<Files<'_>, StoreError> {
        let local = |source| StoreError::Local { path: self.dir.clone(), source };
        let mut files = Files::new();
        for entry in fs::read_dir(&self.dir).map_err(local)? {
            let entry = entry.map_err(local)?;
            let name: FileName = entry.file_name().to_string_lossy().parse()?;
            let size = entry.metadata().map_err(local)?.len();
            files.insert(name, Box::new(LocalFile { path: entry.path(), size }));
        }
        Ok(files)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            warn!(folder = %self.dir.display(), %error, "not deleted");
        }
    }
}

struct LocalFile {
    path: PathBuf,
    size: u64,
}

impl Contents for LocalFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn pieces(&self) -> Box<dyn Iterator<Item = Bytes> + Send + '_> {
        match File::open(&self.path) {
            Ok(file) => Box::new(Pieces { file, path: &self.path }),
            Err(error) => {
                unreadable(&self.path, &error);
                Box::new(std::iter::empty())
            }
        }
    }
}

struct Pieces<'a> {
    file: File,
    path: &'a Path,
}

impl Iterator for Pieces<'_> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut piece = Vec::with_capacity(PIECE);
        match (&mut self.file).take(PIECE as u64).read_to_end(&mut piece) {
            Ok(0) => None,
            Ok(_) => Some(piece.into()),
            Err(error) => {
                unreadable(self.path, &error);
                None
            }
        }
    }
}

/// The object comes out too short then, which is noticed before a manifest names it.
fn unreadable(path: &Path, error: &std::io::Error) {
    warn!(file = %path.display(), %error, "cannot be read");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_in_pieces_and_the_folder_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        fs::create_dir(&path).unwrap();
        let bytes: Vec<u8> = (0..PIECE + 7).map(|i| i as u8).collect();
        fs::write(path.join("model.safetensors"), &bytes).unwrap();
        let folder = Folder::new(path.clone());
        let files = folder.contents().unwrap();
        assert_eq!(files.len(), 1);
        let (name, contents) = files.first_key_value().unwrap();
        assert_eq!((name.as_str(), contents.size()), ("model.safetensors", bytes.len() as u64));
        for _ in 0..2 {
            let pieces: Vec<Bytes> = contents.pieces().collect();
            assert_eq!((pieces.len(), pieces.concat()), (2, bytes.clone()));
        }
        drop(files);
        drop(folder);
        assert!(!path.exists());
    }
}
