//! What a family of models is, as a table: which modules a transformer layer has, and how config.json speaks of them.

use super::parts::{EmbeddingRole, HeadActivation, HeadToken, NormKind, NormRole, Placement, Role};

mod decoders;
mod encoders;

/// A family of models: a table of what its transformer is made of.
#[derive(Debug, PartialEq)]
pub struct Family {
    /// `model_type` in config.json.
    pub name: &'static str,
    /// `architectures` in config.json that it covers: the bare transformer, and with each head.
    pub architectures: &'static [&'static str],
    /// What config.json calls its sizes, and what holds where it is silent.
    pub(super) fields: Fields,
    /// The transformer's module; checkpoints may lack it in their names.
    pub(super) body: &'static str,
    /// What stands between that and a transformer layer's number.
    pub(super) layers: &'static str,
    /// Linear layers of a transformer layer, in the order of the modules.
    pub(super) linears: &'static [LinearRow],
    /// Linear layers are GPT-2's Conv1D, stored `[in, out]`.
    pub(super) conv1d: bool,
    /// Norms of a transformer layer.
    pub(super) norms: &'static [(&'static str, NormRole)],
    /// Norms outside of the transformer layers.
    pub(super) outer_norms: &'static [(&'static str, NormRole)],
    /// Embeddings.
    pub(super) embeddings: &'static [(&'static str, EmbeddingRole)],
    /// How norms compute.
    pub(super) norm: NormKind,
    /// Where the norms of a transformer layer stand.
    pub(super) placement: Placement,
    /// The MLP has a gate.
    pub(super) gated: bool,
    /// A token sees itself and earlier ones only.
    pub(super) causal: bool,
    /// How positions enter.
    pub(super) positions: PositionRule,
    /// Which layers see a window only.
    pub(super) windows: Windows,
    /// Token embeddings are multiplied by √hidden.
    pub(super) scaled_embedding: bool,
    /// The linear layer that gives the next token's logits; `None` for an encoder.
    pub(super) language_model: Option<&'static str>,
    /// How a sequence is classified.
    pub(super) classifier: ClassifierRow,
}

/// What config.json calls a family's sizes, with the defaults of transformers' configuration class.
#[derive(Debug, PartialEq)]
pub(super) struct Fields {
    pub hidden: &'static str,
    pub layers: &'static str,
    pub heads: &'static str,
    /// Width inside the MLP; where config.json is silent, four times `hidden` if so said here.
    pub mlp: &'static str,
    pub mlp_is_four_hidden: bool,
    /// Heads of keys and values where config.json is silent; `None`: as many as of queries.
    pub kv_heads: Option<usize>,
    /// Width of a head where config.json is silent; `None`: hidden / heads.
    pub head_dim: Option<usize>,
    pub positions: (&'static str, usize),
    pub activation: (&'static str, &'static str),
    pub eps: (&'static str, f64),
    pub tied: bool,
    /// Gemma's: caps of attention scores and of logits, and `query_pre_attn_scalar` in the place of the head's width.
    pub softcaps: Option<(Option<f64>, Option<f64>)>,
}

/// The names that most families use, and Llama's defaults.
const USUAL_FIELDS: Fields = Fields {
    hidden: "hidden_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    mlp: "intermediate_size",
    mlp_is_four_hidden: false,
    kv_heads: None,
    head_dim: None,
    positions: ("max_position_embeddings", 2048),
    activation: ("hidden_act", "silu"),
    eps: ("rms_norm_eps", 1e-6),
    // An encoder's ties its masked language model's head, which is no part of what is trained here.
    tied: false,
    softcaps: None,
};

/// How config.json says positions.
#[derive(Debug, PartialEq)]
pub(super) enum PositionRule {
    /// One rotary embedding for all layers.
    Rope,
    /// One for layers with a window, another for those without: Gemma 3's.
    RopeByWindow,
    /// A learned vector for each position.
    Learned,
    /// The same, behind those of the padding token and before.
    LearnedAfterPadding,
}

/// How config.json says which layers see a window only; `layer_types` in it overrules these.
#[derive(Debug, PartialEq)]
pub(super) enum Windows {
    /// None does.
    None,
    /// All do where `sliding_window` is a number; this where config.json does not have it.
    All(Option<usize>),
    /// With `use_sliding_window`, those from `max_window_layers` on.
    Late,
    /// All but every n-th, n being `sliding_window_pattern` or this.
    AllBut(usize),
}

/// One linear layer within a transformer layer.
#[derive(Debug, PartialEq)]
pub(super) struct LinearRow {
    pub name: &'static str,
    pub role: Role,
    pub input: Dim,
    pub output: Dim,
    pub bias: Bias,
}

/// A size that config.json gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Dim {
    Hidden,
    /// heads × head_dim
    Queries,
    /// kv_heads × head_dim
    Keys,
    /// Queries, keys and values.
    Qkv,
    Mlp,
    /// Gate and up.
    TwoMlp,
}

/// When a linear layer has a bias.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bias {
    Always,
    Never,
    /// When `attention_bias` is set.
    Attention,
    /// When `mlp_bias` is set.
    Mlp,
}

/// How a sequence is classified.
#[derive(Debug, PartialEq)]
pub(super) struct ClassifierRow {
    pub token: HeadToken,
    /// The dense layer before the last one.
    pub dense: Option<(&'static str, Role, HeadActivation)>,
    /// The last linear layer.
    pub last: &'static str,
    /// Whether it has a bias.
    pub bias: bool,
}

pub(super) const fn row(name: &'static str, role: Role, input: Dim, output: Dim, bias: Bias) -> LinearRow {
    LinearRow { name, role, input, output, bias }
}

/// Families that the trainer can compute.
static FAMILIES: &[Family] = &[
    decoders::LLAMA,
    decoders::MISTRAL,
    decoders::QWEN2,
    decoders::QWEN3,
    decoders::GEMMA2,
    decoders::GEMMA3,
    decoders::PHI3,
    decoders::GPT2,
    encoders::BERT,
    encoders::ROBERTA,
    encoders::XLM_ROBERTA,
    encoders::DISTILBERT,
];

/// The family of an architecture.
pub(super) fn by_architecture(architecture: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.architectures.contains(&architecture))
}

/// The family of a `model_type`, for config files without `architectures`.
pub(super) fn by_model_type(model_type: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == model_type)
}

/// Every family that can be trained, by its `model_type`.
pub(super) fn known() -> Vec<&'static str> {
    FAMILIES.iter().map(|family| family.name).collect()
}
