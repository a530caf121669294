//! A frozen base in memory: loaded once, shared by every job that trains on it, never written.

use std::path::{Path, PathBuf};

use lorafleet_spec::base::{BaseShape, Head};
use lorafleet_spec::job::Precision;

use crate::model::weights::Weights;
use crate::model::{ModelError, Transformer};

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
    dir: PathBuf,
    shape: BaseShape,
    model: Transformer,
    precision: Precision,
}

impl Base {
    /// Loads a Hugging Face folder as a language model in f32: `config.json` and one or several safetensors files.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the architecture is not known.
    pub fn load(dir: &Path) -> Result<Self, BaseError> {
        Self::load_as(dir, Head::LanguageModel, Precision::F32)
    }

    /// The same with the head that the task wants, its linear layers held and multiplied in that precision.
    ///
    /// # Errors
    /// As [`Base::load`].
    pub fn load_as(dir: &Path, head: Head, precision: Precision) -> Result<Self, BaseError> {
        let shape = BaseShape::read(dir, head)?;
        let model = Transformer::load(dir, &shape, precision)?;
        Ok(Self { dir: dir.to_owned(), shape, model, precision })
    }

    /// The folder that it was loaded from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its layers and their sizes.
    pub fn shape(&self) -> &BaseShape {
        &self.shape
    }

    /// In what numbers its linear layers are held and multiplied.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// A tensor as its files hold it, row-major, by the name that the task's class has for it.
    ///
    /// # Errors
    /// The base has no such tensor, or its file was moved or truncated since it was loaded.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        Weights::open_one(&self.dir, &self.shape, name)?.read(name)
    }

    /// The model.
    pub fn model(&self) -> &Transformer {
        &self.model
    }
}
