//! A base's shape, from config.json and the headers of its safetensors files, without reading any tensor.

mod build;
mod config;
mod error;
mod family;
mod files;
mod parts;
mod source;
mod tensors;

use std::{collections::BTreeMap, path::Path};

pub use error::BaseError;
pub use family::Family;
pub use files::{BASE_CONFIG, base_files, needed_files, read_tensor_file, weight_files};
pub use parts::{
    Activation, Attention, EmbeddingModule, EmbeddingRole, Head, HeadActivation, HeadDense, HeadShape,
    HeadToken, LayerKind, LinearModule, Norm, NormKind, NormModule, NormRole, Placement, Positions, Role,
    Rope, RopeScaling, TensorEntry,
};
pub use source::{BaseSource, HubId};
pub use tensors::{Dtype, TensorFile, header_len};

use config::Config;

/// A base's shape: everything that can be known of it without its tensors.
///
/// Modules are named as PEFT sees them in the class that the task asks for, whatever the files call them.
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
    /// Rows of the token embedding.
    pub vocab: usize,
    /// Tokens of the longest sequence.
    pub max_positions: usize,
    /// The output head is the token embedding.
    pub tied: bool,
    /// How norms compute.
    pub norm: Norm,
    /// Where norms stand.
    pub placement: Placement,
    /// Queries and keys have norms, before positions enter.
    pub qk_norm: bool,
    /// How positions enter.
    pub positions: Positions,
    /// What the MLP's gate, or its only inner layer, goes through.
    pub activation: Activation,
    /// The MLP is down(activation(gate(x)) · up(x)), not down(activation(up(x))).
    pub gated: bool,
    /// How attention scores are made.
    pub attention: Attention,
    /// In what the layers differ; one for each.
    pub layer_kinds: Vec<LayerKind>,
    /// What token embeddings are multiplied by.
    pub embedding_scale: f64,
    /// c in c · tanh(logit / c), which takes the place of the next token's logits.
    pub final_softcap: Option<f64>,
    /// Rows of the token type embedding; 0 without one.
    pub token_types: usize,
    /// The sum of embeddings has a norm.
    pub embedding_norm: bool,
    /// What follows the last transformer layer.
    pub head: HeadShape,
    /// Standard deviation of the weights in `fresh`.
    pub initializer_range: f64,
    /// Linear layers in the order of the modules, the head's (tied or not) last.
    pub linears: Vec<LinearModule>,
    /// Norms in the order of the modules.
    pub norms: Vec<NormModule>,
    /// Embeddings in the order of the modules.
    pub embeddings: Vec<EmbeddingModule>,
    /// Tensors that the files have, by the name that the task's class has for them.
    pub tensors: BTreeMap<String, TensorEntry>,
    /// Tensors of the head that the files do not have: weights are drawn from N(0, initializer_range), biases are 0, and
    /// training always includes them.
    pub fresh: Vec<String>,
}

impl BaseShape {
    /// Reads the shape of a base in a folder, with the head that the task wants.
    ///
    /// # Errors
    /// What is missing, damaged, unknown or contradictory, by file, field and tensor.
    pub fn read(dir: &Path, head: Head) -> Result<Self, BaseError> {
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
            (Ok(config), Ok(files)) => build::assemble(config, &files, head),
            (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
            (Err(config), Err(files)) => Err(BaseError::Many(vec![config, files])),
        }
    }

    /// The same from contents: config.json's text, and the headers of all safetensors files.
    ///
    /// # Errors
    /// As [`BaseShape::read`].
    pub fn parse(config_json: &str, files: &[TensorFile], head: Head) -> Result<Self, BaseError> {
        build::assemble(Config::parse(config_json)?, files, head)
    }

    /// Every tensor of the model with its shape, in the order of the modules: linear layers' weights and biases, norms',
    /// embeddings'. A tied head has none.
    pub fn parameter_shapes(&self) -> Vec<(String, Vec<usize>)> {
        build::parameter_shapes(self)
    }

    /// Parameters of the base, a tied head counted once.
    pub fn parameters(&self) -> u64 {
        self.parameter_shapes()
            .iter()
            .map(|(_, shape)| shape.iter().map(|n| *n as u64).product::<u64>())
            .sum()
    }

    /// Width of all query heads together.
    pub fn queries(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn keys(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Name of the list that the transformer layers are counted in, `layers` or `h`.
    pub fn layer_list(&self) -> &'static str {
        self.family.layers.rsplit('.').next().unwrap_or(self.family.layers)
    }

    /// The linear layer of a name.
    pub fn linear(&self, name: &str) -> Option<&LinearModule> {
        self.linears.iter().find(|linear| linear.name == name)
    }

    /// The linear layer with a role, in a transformer layer or behind the last one.
    pub fn linear_at(&self, layer: Option<usize>, role: Role) -> Option<&LinearModule> {
        self.linears.iter().find(|linear| linear.layer == layer && linear.role == role)
    }

    /// The norm with a role, in a transformer layer or outside of them.
    pub fn norm_at(&self, layer: Option<usize>, role: NormRole) -> Option<&NormModule> {
        self.norms.iter().find(|norm| norm.layer == layer && norm.role == role)
    }

    /// The embedding with a role.
    pub fn embedding_at(&self, role: EmbeddingRole) -> Option<&EmbeddingModule> {
        self.embeddings.iter().find(|embedding| embedding.role == role)
    }

    /// The rotary embedding of a transformer layer; `None` where positions are learned.
    pub fn rope_at(&self, layer: usize) -> Option<&Rope> {
        match &self.positions {
            Positions::Rope(ropes) => ropes.get(self.layer_kinds.get(layer)?.rope),
            Positions::Learned { .. } => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
