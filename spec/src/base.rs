//! A base's shape, from config.json and the headers of its safetensors files, without reading any tensor.

mod config;
mod family;
mod files;
mod tensors;

use std::{collections::BTreeMap, fmt, path::Path, path::PathBuf};

pub use config::{Activation, Rope, RopeScaling};
pub use family::Family;
pub use files::{base_files, read_tensor_file, weight_files};
pub use tensors::{Dtype, TensorFile, header_len};

use config::Config;

/// Problems of one kind that a message lists before it only counts them.
const LISTED: usize = 8;

/// What is wrong with a base.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The folder is not there, or is no folder.
    #[error("{} is not a folder with a Hugging Face model", .0.display())]
    NotAFolder(PathBuf),
    /// A file that every base needs is not there.
    #[error("{file} is missing{}", .hint.as_deref().unwrap_or_default())]
    MissingFile {
        /// Its name within the folder.
        file: String,
        /// What to do, beginning with a separator.
        hint: Option<String>,
    },
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// config.json is not JSON, or not an object.
    #[error("config.json: {0}")]
    ConfigJson(String),
    /// The architecture is none that can be trained.
    #[error("config.json: the architecture {found} is not known; known are {}", known.join(", "))]
    UnknownArchitecture {
        /// As config.json says.
        found: String,
        /// All that can be trained.
        known: Vec<&'static str>,
    },
    /// Fields of config.json are absent, or say what cannot be trained.
    #[error("config.json: {}", list(.0))]
    Config(Vec<String>),
    /// A safetensors file is damaged.
    #[error("{file}: {message}")]
    Weights {
        /// Its name.
        file: String,
        /// What is wrong with it.
        message: String,
    },
    /// Tensors are missing, or have another shape or type than config.json asks for.
    #[error("the weights do not fit config.json: {}", list(.0))]
    Tensors(Vec<String>),
    /// Several of these at once.
    #[error("{}", list(.0))]
    Many(Vec<BaseError>),
}

/// One linear layer of a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearModule {
    /// `model.layers.0.self_attn.q_proj`; its weight is this plus `.weight`, its bias plus `.bias`.
    pub name: String,
    /// Columns of the weight.
    pub in_features: usize,
    /// Rows of the weight.
    pub out_features: usize,
    /// Whether it has a bias.
    pub bias: bool,
    /// The transformer layer that it belongs to; `None` for the output head.
    pub layer: Option<usize>,
    /// It is the output head, tied or not.
    pub head: bool,
}

/// A tensor as the files describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Name of the file that holds it.
    pub file: String,
    /// Type of its numbers.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// First byte in the file, and the first after its last.
    pub range: (u64, u64),
}

/// A base's shape: everything that can be known of it without its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct BaseShape {
    /// The family, as a table of what a layer is made of.
    pub family: &'static Family,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads (of queries).
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width inside the MLP.
    pub mlp: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// What the MLP's gate goes through.
    pub activation: Activation,
    /// The output head is the embedding.
    pub tied: bool,
    /// q, k, v and o have biases.
    pub attention_bias: bool,
    /// gate, up and down have biases.
    pub mlp_bias: bool,
    /// Linear layers in the order of the modules, the output head last (tied or not).
    pub linears: Vec<LinearModule>,
    /// Tensors of the model by name (those that the model does not use are left out).
    pub tensors: BTreeMap<String, TensorEntry>,
}

impl BaseShape {
    /// Reads the shape of a base in a folder.
    ///
    /// # Errors
    /// What is missing, damaged, unknown or contradictory, by file, field and tensor.
    pub fn read(dir: &Path) -> Result<Self, BaseError> {
        if !dir.is_dir() {
            return Err(BaseError::NotAFolder(dir.to_owned()));
        }
        let path = dir.join("config.json");
        let config = match std::fs::read_to_string(&path) {
            Ok(text) => Config::parse(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(BaseError::MissingFile { file: "config.json".to_owned(), hint: None })
            }
            Err(source) => Err(BaseError::Io { path, source }),
        };
        // An unreadable config does not hide damaged weights: both are told.
        let files = files::read_tensor_files(dir);
        match (config, files) {
            (Ok(config), Ok(files)) => Self::assemble(config, &files),
            (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
            (Err(config), Err(files)) => Err(BaseError::Many(vec![config, files])),
        }
    }

    /// The same from contents: config.json's text, and the headers of all safetensors files.
    ///
    /// # Errors
    /// As [`BaseShape::read`].
    pub fn parse(config_json: &str, files: &[TensorFile]) -> Result<Self, BaseError> {
        Self::assemble(Config::parse(config_json)?, files)
    }

    fn assemble(config: Config, files: &[TensorFile]) -> Result<Self, BaseError> {
        let mut shape = Self {
            family: config.family,
            hidden: config.hidden,
            layers: config.layers,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            mlp: config.mlp,
            vocab: config.vocab,
            max_positions: config.max_positions,
            norm_eps: config.norm_eps,
            rope: config.rope,
            activation: config.activation,
            tied: config.tied,
            attention_bias: config.attention_bias,
            mlp_bias: config.mlp_bias,
            linears: Vec::new(),
            tensors: BTreeMap::new(),
        };
        shape.linears = family::linears(&shape);
        shape.tensors = tensors::inventory(files, &family::tensors(&shape))?;
        Ok(shape)
    }

    /// Parameters of the base, a tied head counted once.
    pub fn parameters(&self) -> u64 {
        family::tensors(self).iter().map(|(_, shape)| shape.iter().map(|n| *n as u64).product::<u64>()).sum()
    }

    /// Width of all query heads together.
    pub fn queries(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn keys(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The linear layer of a name.
    pub fn linear(&self, name: &str) -> Option<&LinearModule> {
        self.linears.iter().find(|linear| linear.name == name)
    }
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    let mut text = items.iter().take(LISTED).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if items.len() > LISTED {
        text += &format!("; and {} more", items.len() - LISTED);
    }
    text
}

#[cfg(test)]
mod tests;
