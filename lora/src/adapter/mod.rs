//! Adapters as PEFT keeps them: their configuration, their files, their initial weights.

pub mod config;
pub mod file;
pub mod init;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lorafleet_spec::base::BaseShape;

use crate::params::{AdapterView, Layout};
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
}

/// A whole adapter in memory: configuration, places, weights.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// What `adapter_config.json` says.
    pub config: AdapterConfig,
    /// Where each module's matrices lie in `weights`.
    pub layout: Arc<Layout>,
    /// All weights, as long as the layout.
    pub weights: Vec<f32>,
}

impl Adapter {
    /// Reads a PEFT LoRA folder for a base of this shape.
    ///
    /// # Errors
    /// When a file is missing or damaged, when the adapter is of a kind that is not supported, or does not fit the base.
    pub fn load(dir: &Path, shape: &BaseShape) -> Result<Self, AdapterError> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read(&path).map_err(|source| AdapterError::Io { path, source })
        };
        Self::parse(&read(CONFIG_FILE)?, &read(WEIGHTS_FILE)?, shape)
    }

    /// Reads an adapter from the bytes of its two files.
    ///
    /// # Errors
    /// As [`Adapter::load`], but for missing files.
    pub fn parse(config: &[u8], weights: &[u8], shape: &BaseShape) -> Result<Self, AdapterError> {
        let config = AdapterConfig::parse(config)?;
        let layout = config.layout(shape)?;
        let weights = file::read_weights(&layout, weights)?;
        Ok(Self { config, layout: Arc::new(layout), weights })
    }

    /// The weights with their places, for the model.
    pub fn view(&self) -> AdapterView<'_> {
        AdapterView::new(&self.layout, &self.weights)
    }
}
