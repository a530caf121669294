//! A frozen base in memory: loaded once, shared by every job that trains on it, never written.

use std::path::Path;

use lorafleet_spec::base::{BaseShape, Head};

use crate::model::{Decoder, ModelError};

/// Why a base cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// Its files do not make up a base that is known.
    #[error(transparent)]
    Shape(#[from] lorafleet_spec::base::BaseError),
    /// Its weights cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// A frozen base: its shape and its weights, ready to compute.
#[derive(Debug)]
pub struct Base {
    shape: BaseShape,
    decoder: Decoder,
}

impl Base {
    /// Loads a Hugging Face folder: `config.json` and one or several safetensors files.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the architecture is not known.
    pub fn load(dir: &Path) -> Result<Self, BaseError> {
        let shape = BaseShape::read(dir, Head::LanguageModel)?;
        let decoder = Decoder::load(dir, &shape)?;
        Ok(Self { shape, decoder })
    }

    /// Its layers and their sizes.
    pub fn shape(&self) -> &BaseShape {
        &self.shape
    }

    /// The model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }
}
