//! Families of decoders.

use super::{
    Bias::{Attention, Mlp as MlpBias},
    ClassifierRow,
    Dim::{Hidden, Keys, Mlp, Queries},
    Family, Fields, LinearRow, PositionRule, Windows, row,
};
use crate::base::parts::{EmbeddingRole, HeadToken, NormKind, NormRole, Placement, Role};

/// The fields of Llama and its kin.
const FIELDS: Fields = Fields {
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
    tied: false,
    softcaps: None,
};

const LINEARS: &[LinearRow] = &[
    row("self_attn.q_proj", Role::Q, Hidden, Queries, Attention),
    row("self_attn.k_proj", Role::K, Hidden, Keys, Attention),
    row("self_attn.v_proj", Role::V, Hidden, Keys, Attention),
    row("self_attn.o_proj", Role::O, Queries, Hidden, Attention),
    row("mlp.gate_proj", Role::Gate, Hidden, Mlp, MlpBias),
    row("mlp.up_proj", Role::Up, Hidden, Mlp, MlpBias),
    row("mlp.down_proj", Role::Down, Mlp, Hidden, MlpBias),
];

const NORMS: &[(&str, NormRole)] =
    &[("input_layernorm", NormRole::BeforeAttention), ("post_attention_layernorm", NormRole::BeforeMlp)];

const SCORE: ClassifierRow =
    ClassifierRow { token: HeadToken::Last, dense: None, last: "score", bias: false };

/// Llama (arXiv:2302.13971; grouped keys and values since arXiv:2307.09288).
pub(super) static LLAMA: Family = Family {
    name: "llama",
    architectures: &["LlamaForCausalLM", "LlamaForSequenceClassification", "LlamaModel"],
    fields: FIELDS,
    body: "model",
    layers: "layers",
    linears: LINEARS,
    conv1d: false,
    norms: NORMS,
    outer_norms: &[("norm", NormRole::Final)],
    embeddings: &[("embed_tokens", EmbeddingRole::Tokens)],
    norm: NormKind::Rms,
    placement: Placement::Before,
    gated: true,
    causal: true,
    positions: PositionRule::Rope,
    windows: Windows::None,
    scaled_embedding: false,
    language_model: Some("lm_head"),
    classifier: SCORE,
};
