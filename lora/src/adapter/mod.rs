//! Adapters as PEFT keeps them: their configuration, their files, their initial weights, their merge into a base.

pub mod config;
pub(crate) mod file;
pub mod init;
pub mod layout;
pub mod merge;
mod start;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lorafleet_spec::base::BaseShape;
use lorafleet_spec::job::Init;

use crate::model::ModelError;
use crate::params::{AdapterView, Layout};
use crate::tensor_file::TensorFile;
use config::AdapterConfig;

/// Name of the file that says what an adapter is.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the file that holds an adapter's weights.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Name of the file that holds the optimizer's state beside an adapter in a checkpoint.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// Why an adapter cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A file of the folder is missing or unreadable.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A checkpoint lacks one of its files.
    #[error("the checkpoint has no {0}")]
    MissingFile(&'static str),
    /// `adapter_config.json` is not what PEFT writes, or asks for what is not supported.
    #[error("{CONFIG_FILE}: {0}")]
    Config(String),
    /// The adapter's targets do not fit the base.
    #[error("{CONFIG_FILE} does not fit the base: {0}")]
    Targets(String),
    /// A safetensors file is damaged.
    #[error("{file} is not a whole safetensors file: {message}")]
    Safetensors {
        /// Which file.
        file: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// A safetensors file has other tensors than the configuration asks for.
    #[error("{file} does not fit {CONFIG_FILE} and the base: {problems}")]
    Tensors {
        /// Which file.
        file: &'static str,
        /// Missing, unexpected and mis-shaped tensors by name.
        problems: String,
    },
    /// Files are of another adapter than the one that was to be restored.
    #[error("the files are of another adapter")]
    Other,
    /// A tensor of the base, from which an adapter starts, cannot be read.
    #[error(transparent)]
    Base(#[from] ModelError),
}

/// Reads a tensor of the base by its canonical name, row-major as the base stores it.
pub type ReadTensor<'a> = dyn Fn(&str) -> Result<Vec<f32>, ModelError> + Sync + 'a;

/// A whole adapter in memory: configuration, places, weights.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// What `adapter_config.json` says.
    pub config: AdapterConfig,
    /// Where each tensor lies in `weights`.
    pub layout: Arc<Layout>,
    /// All weights, as long as the layout.
    pub weights: Vec<f32>,
    /// The first weights of an adapter that starts as a part of the base (PiSSA, OLoRA): they are subtracted.
    pub start: Option<Arc<Vec<f32>>>,
}

impl Adapter {
    /// Reads a PEFT LoRA folder for a base of this shape. `read` gives the base's tensors: an adapter that PEFT started
    /// as a part of the base (PiSSA, OLoRA) and did not convert needs them.
    ///
    /// # Errors
    /// When a file is missing or damaged, when the adapter is of a kind that is not supported, or does not fit the base.
    pub fn load(dir: &Path, shape: &BaseShape, read: &ReadTensor) -> Result<Self, AdapterError> {
        let bytes = |name: &str| {
            let path = dir.join(name);
            std::fs::read(&path).map_err(|source| AdapterError::Io { path, source })
        };
        Self::parse(&bytes(CONFIG_FILE)?, &bytes(WEIGHTS_FILE)?, shape, read)
    }

    /// Reads an adapter from the bytes of its two files.
    ///
    /// # Errors
    /// As [`Adapter::load`], but for missing files.
    pub fn parse(
        config: &[u8],
        weights: &[u8],
        shape: &BaseShape,
        read: &ReadTensor,
    ) -> Result<Self, AdapterError> {
        let config = AdapterConfig::parse(config)?;
        let layout = config.layout(shape)?;
        let weights = file::read_weights(&layout, weights)?;
        // PEFT makes the start again from the base, and so do we: it does not depend on any draw.
        let start = if config.subtracts_start() {
            Some(Arc::new(init::start(config.adapter.init, &layout, shape, read)?))
        } else {
            None
        };
        Ok(Self { config, layout: Arc::new(layout), weights, start })
    }

    /// Reads what [`Adapter::files`] wrote of an adapter of this configuration and layout.
    ///
    /// # Errors
    /// When the files are damaged, or those of another adapter.
    pub fn restore(
        config: &AdapterConfig,
        layout: &Arc<Layout>,
        files: (&[u8], &[u8]),
        shape: &BaseShape,
    ) -> Result<Self, AdapterError> {
        let subtracted = config.subtracts_start();
        let written = if subtracted { start::written_layout(layout) } else { (**layout).clone() };
        let found = AdapterConfig::parse(files.0)?.layout(shape)?;
        if !same_places(&found, &written) {
            return Err(AdapterError::Other);
        }
        let all = file::read_weights(&written, files.1)?;
        let (weights, start) = if subtracted {
            let (weights, start) = start::read_back(layout, &written, &all);
            (weights, Some(Arc::new(start)))
        } else {
            (all, None)
        };
        Ok(Self { config: config.clone(), layout: layout.clone(), weights, start })
    }

    /// The bytes of `adapter_config.json` and `adapter_model.safetensors`, as PEFT would write them: the same bytes for the
    /// same adapter.
    ///
    /// A start that is subtracted becomes further ranks: twice the rank, no subtraction, the same function.
    pub fn files(&self) -> (Vec<u8>, Vec<u8>) {
        let (config, weights) = written(&self.config, &self.layout, &self.weights, self.start.as_deref());
        (config, weights.to_vec())
    }

    /// The weights with their places, for the model.
    pub fn view(&self) -> AdapterView<'_> {
        AdapterView {
            frozen_start: self.start.as_ref().map(|start| start.as_slice()),
            ..AdapterView::new(&self.layout, &self.weights)
        }
    }
}

/// The weights' file of an adapter, as it is written.
pub(crate) enum WeightsFile<'a> {
    /// Of the weights as they are.
    Plain(TensorFile<'a>),
    /// Of other weights, which are made for it.
    Made(Vec<u8>),
}

impl WeightsFile<'_> {
    fn to_vec(&self) -> Vec<u8> {
        match self {
            Self::Plain(file) => file.to_vec(),
            Self::Made(bytes) => bytes.clone(),
        }
    }
}

/// The files of an adapter: see [`Adapter::files`].
pub(crate) fn written<'a>(
    config: &AdapterConfig,
    layout: &Layout,
    weights: &'a [f32],
    start: Option<&Vec<f32>>,
) -> (Vec<u8>, WeightsFile<'a>) {
    match start {
        Some(start) => {
            let (layout, weights) = start::write_out(layout, weights, start);
            let config = config.doubled().to_json(&layout);
            (config.into_bytes(), WeightsFile::Made(file::write_weights(&layout, &weights).to_vec()))
        }
        None => {
            let mut config = config.clone();
            if config.subtracts_start() {
                // Nothing is subtracted, so nobody who reads it may.
                config.adapter.init = Init::Kaiming;
            }
            let config = config.to_json(layout);
            (config.into_bytes(), WeightsFile::Plain(file::write_weights(layout, weights)))
        }
    }
}

/// The same tensors at the same places; scales may differ by rounding.
fn same_places(one: &Layout, other: &Layout) -> bool {
    let near = |a: f32, b: f32| (a - b).abs() <= 1e-6 * b.abs();
    let modules = one.modules().iter().zip(other.modules());
    one.modules().len() == other.modules().len()
        && one.whole() == other.whole()
        && modules.into_iter().all(|(a, b)| {
            near(a.scale, b.scale) && crate::params::AdaptedModule { scale: b.scale, ..a.clone() } == *b
        })
}
