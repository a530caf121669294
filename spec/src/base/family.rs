//! Families of models as data: which linear layers and norms a transformer layer has, and of what sizes.
//!
//! A family that the trainer can compute is added here as a table; nothing else in this crate names a module.

use super::{BaseShape, LinearModule};

/// A family of models: a table of what a transformer layer is made of.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// `model_type` in config.json.
    pub name: &'static str,
    /// `architectures` in config.json that it covers.
    pub architectures: &'static [&'static str],
    /// Linear layers of a transformer layer, in the order of the modules.
    linears: &'static [LinearRow],
    /// One-dimensional weights of a transformer layer.
    vectors: &'static [(&'static str, Dim)],
    /// What stands before a transformer layer's number.
    layers: &'static str,
    /// The embedding's weight.
    embedding: &'static str,
    /// One-dimensional weights after the last transformer layer.
    last_vectors: &'static [(&'static str, Dim)],
    /// The output head's module.
    head: &'static str,
}

/// One linear layer within a transformer layer.
#[derive(Debug, PartialEq, Eq)]
struct LinearRow {
    name: &'static str,
    input: Dim,
    output: Dim,
    bias: Bias,
}

/// A size that config.json gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dim {
    Hidden,
    /// heads × head_dim
    Queries,
    /// kv_heads × head_dim
    Keys,
    Mlp,
}

/// When a linear layer has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bias {
    /// When `attention_bias` is set.
    Attention,
    /// When `mlp_bias` is set.
    Mlp,
}

const fn row(name: &'static str, input: Dim, output: Dim, bias: Bias) -> LinearRow {
    LinearRow { name, input, output, bias }
}

/// Llama (arXiv:2302.13971; grouped keys and values since arXiv:2307.09288).
static LLAMA: Family = Family {
    name: "llama",
    architectures: &["LlamaForCausalLM"],
    linears: &[
        row("self_attn.q_proj", Dim::Hidden, Dim::Queries, Bias::Attention),
        row("self_attn.k_proj", Dim::Hidden, Dim::Keys, Bias::Attention),
        row("self_attn.v_proj", Dim::Hidden, Dim::Keys, Bias::Attention),
        row("self_attn.o_proj", Dim::Queries, Dim::Hidden, Bias::Attention),
        row("mlp.gate_proj", Dim::Hidden, Dim::Mlp, Bias::Mlp),
        row("mlp.up_proj", Dim::Hidden, Dim::Mlp, Bias::Mlp),
        row("mlp.down_proj", Dim::Mlp, Dim::Hidden, Bias::Mlp),
    ],
    vectors: &[("input_layernorm.weight", Dim::Hidden), ("post_attention_layernorm.weight", Dim::Hidden)],
    layers: "model.layers",
    embedding: "model.embed_tokens.weight",
    last_vectors: &[("model.norm.weight", Dim::Hidden)],
    head: "lm_head",
};

/// Families that the trainer can compute.
static FAMILIES: &[&Family] = &[&LLAMA];

/// The family of an architecture.
pub(super) fn by_architecture(architecture: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|family| family.architectures.contains(&architecture))
}

/// The family of a `model_type`, for config files without `architectures`.
pub(super) fn by_model_type(model_type: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|family| family.name == model_type)
}

/// Every architecture that can be trained.
pub(super) fn known() -> Vec<&'static str> {
    FAMILIES.iter().flat_map(|family| family.architectures).copied().collect()
}

/// The linear layers of a base in the order of its modules, the head last.
pub(super) fn linears(shape: &BaseShape) -> Vec<LinearModule> {
    let family = shape.family;
    let in_layers = (0..shape.layers).flat_map(|layer| {
        family.linears.iter().map(move |row| LinearModule {
            name: format!("{}.{layer}.{}", family.layers, row.name),
            in_features: row.input.size(shape),
            out_features: row.output.size(shape),
            bias: row.bias.is_set(shape),
            layer: Some(layer),
            head: false,
        })
    });
    let head = LinearModule {
        name: family.head.to_owned(),
        in_features: shape.hidden,
        out_features: shape.vocab,
        bias: false,
        layer: None,
        head: true,
    };
    in_layers.chain([head]).collect()
}

/// Every tensor that a base must have, with its shape; a tied head has none.
pub(super) fn tensors(shape: &BaseShape) -> Vec<(String, Vec<usize>)> {
    let family = shape.family;
    let mut tensors = vec![(family.embedding.to_owned(), vec![shape.vocab, shape.hidden])];
    for layer in 0..shape.layers {
        let prefix = format!("{}.{layer}", family.layers);
        for row in family.linears {
            let (input, output) = (row.input.size(shape), row.output.size(shape));
            tensors.push((format!("{prefix}.{}.weight", row.name), vec![output, input]));
            if row.bias.is_set(shape) {
                tensors.push((format!("{prefix}.{}.bias", row.name), vec![output]));
            }
        }
        tensors.extend(
            family.vectors.iter().map(|(name, dim)| (format!("{prefix}.{name}"), vec![dim.size(shape)])),
        );
    }
    tensors.extend(family.last_vectors.iter().map(|(name, dim)| ((*name).to_owned(), vec![dim.size(shape)])));
    if !shape.tied {
        tensors.push((format!("{}.weight", family.head), vec![shape.vocab, shape.hidden]));
    }
    tensors
}

impl Dim {
    fn size(self, shape: &BaseShape) -> usize {
        match self {
            Dim::Hidden => shape.hidden,
            Dim::Queries => shape.queries(),
            Dim::Keys => shape.keys(),
            Dim::Mlp => shape.mlp,
        }
    }
}

impl Bias {
    fn is_set(self, shape: &BaseShape) -> bool {
        match self {
            Bias::Attention => shape.attention_bias,
            Bias::Mlp => shape.mlp_bias,
        }
    }
}
