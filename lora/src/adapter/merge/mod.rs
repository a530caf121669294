//! Merges an adapter into its base: a plain Hugging Face folder whose weights are `W' = W + s·B·A`, and every other form's.
//!
//! Tensor after tensor is read, changed and written in slabs of some rows, so a merge holds the adapter and a few megabytes,
//! whatever the size of the base or of a shard. Shards, index, number types and the files beside the weights stay as they
//! are. The new folder appears whole or not at all.

mod config;
mod delta;
mod plan;
mod write;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use lorafleet_spec::base::{BaseShape, Dtype, Head, base_files};
use lorafleet_spec::job::Task;

use super::config::AdapterConfig;
use super::{Adapter, AdapterError, CONFIG_FILE, WEIGHTS_FILE, file};
use crate::model::ModelError;
use crate::model::weights::Weights;
use plan::Plan;

/// Why a merge did not succeed; nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The folder for the result exists.
    #[error("{0} exists already; a merge never overwrites: name a new folder, or remove it")]
    Exists(PathBuf),
    /// The base is not one that is known.
    #[error(transparent)]
    Base(#[from] lorafleet_spec::base::BaseError),
    /// The base's tensors cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The adapter cannot be read, or does not fit the base.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A JSON file of the base is damaged.
    #[error("{file}: {message}")]
    Json {
        /// Which file.
        file: String,
        /// What is wrong with it.
        message: String,
    },
    /// A merged weight is not a number of the type that is written.
    #[error(
        "{tensor} has a merged value that {dtype:?} cannot hold: {value}; write another --dtype, or mend the adapter"
    )]
    Value {
        /// Which tensor.
        tensor: String,
        /// What is written.
        dtype: Dtype,
        /// The value, in f32.
        value: f32,
    },
    /// Whoever watches its progress wanted no more of it.
    #[error("the merge was broken off")]
    BrokenOff,
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> MergeError {
    move |source| MergeError::Io { path: path.to_owned(), source }
}

/// How far a merge is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The tensor that was written last.
    pub tensor: &'a str,
    /// Bytes of weights that are written.
    pub done: u64,
    /// Bytes of weights in all.
    pub total: u64,
}

/// What a merge did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Tensors that the adapter changed, or brought along.
    pub changed: usize,
    /// Tensors that were copied.
    pub copied: usize,
    /// Whether the output head and the token embedding were one tensor in the base, and are two now: one was adapted alone.
    /// (PEFT changes both in its merge, which is then another model than before it.)
    pub untied: bool,
    /// The greatest number of bytes in buffers at one time, beside the adapter.
    pub most_buffered: usize,
}

/// Merges the adapter in a folder into the base in another, and writes the result to `out`, which must not exist.
///
/// `dtype` is the number type of all weights; without it each tensor keeps its own. `progress` is told of every tensor, and
/// may break off.
///
/// # Errors
/// The base or the adapter cannot be read, or do not fit; `out` exists or cannot be written; it was broken off. Nothing is
/// left of `out` then.
pub fn merge(
    base: &Path,
    adapter: &Path,
    out: &Path,
    dtype: Option<Dtype>,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Merged, MergeError> {
    if out.symlink_metadata().is_ok() {
        return Err(MergeError::Exists(out.to_owned()));
    }
    let (shape, adapter) = load(base, adapter)?;
    let plan = Plan::new(base, &shape, &adapter, dtype)?;
    let folder = Partial::beside(out)?;
    let merged = write::weights(&plan, base, &folder.path, progress)?;
    for name in base_files(base)?.iter().filter(|name| !name.contains(".safetensors")) {
        let (from, to) = (base.join(name), folder.path.join(name));
        if name == "config.json" {
            let text = std::fs::read(&from).map_err(io(&from))?;
            std::fs::write(&to, config::edited(text, &plan, dtype)?).map_err(io(&to))?;
        } else {
            std::fs::copy(&from, &to).map_err(io(&to))?;
        }
    }
    folder.keep(out)?;
    Ok(merged)
}

/// The base's shape with the head that the adapter was trained with, and the adapter.
fn load(base: &Path, dir: &Path) -> Result<(BaseShape, Adapter), MergeError> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read(&path).map_err(io(&path))
    };
    let (json, weights) = (read(CONFIG_FILE)?, read(WEIGHTS_FILE)?);
    let head = match AdapterConfig::parse(&json)?.task {
        Task::CausalLm => Head::LanguageModel,
        Task::Classification => Head::Classifier { labels: file::labels(&weights)? },
    };
    let shape = BaseShape::read(base, head)?;
    let read = |name: &str| Weights::open_one(base, &shape, name)?.read(name);
    let adapter = Adapter::parse(&json, &weights, &shape, &read)?;
    Ok((shape, adapter))
}

/// A folder under another name, which disappears unless it is kept.
struct Partial {
    path: PathBuf,
}

impl Partial {
    fn beside(out: &Path) -> Result<Self, MergeError> {
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let path = out.with_file_name(format!(".{name}.partial-{}", std::process::id()));
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io(parent))?;
        }
        std::fs::create_dir(&path).map_err(io(&path))?;
        Ok(Self { path })
    }

    /// Gives it its name, at once.
    fn keep(self, out: &Path) -> Result<(), MergeError> {
        if out.symlink_metadata().is_ok() {
            return Err(MergeError::Exists(out.to_owned()));
        }
        std::fs::rename(&self.path, out).map_err(io(out))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already where it was kept.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests;
