//! Families of decoders.

use super::{
    Bias::{self, Always, Attention, Mlp as MlpBias, Never},
    ClassifierRow,
    Dim::{Hidden, Keys, Mlp, Qkv, Queries, TwoMlp},
    Family, Fields, LinearRow, PositionRule, USUAL_FIELDS, Windows, row,
};
use crate::base::parts::{EmbeddingRole, HeadToken, NormKind, NormRole, Placement, Role};

/// Queries, keys, values, their output, a gate, up and down, each a layer of its own.
const fn seven(qkv: Bias, output: Bias, mlp: Bias) -> [LinearRow; 7] {
    [
        row("self_attn.q_proj", Role::Q, Hidden, Queries, qkv),
        row("self_attn.k_proj", Role::K, Hidden, Keys, qkv),
        row("self_attn.v_proj", Role::V, Hidden, Keys, qkv),
        row("self_attn.o_proj", Role::O, Queries, Hidden, output),
        row("mlp.gate_proj", Role::Gate, Hidden, Mlp, mlp),
        row("mlp.up_proj", Role::Up, Hidden, Mlp, mlp),
        row("mlp.down_proj", Role::Down, Mlp, Hidden, mlp),
    ]
}

const SCORE: ClassifierRow =
    ClassifierRow { token: HeadToken::Last, dense: None, last: "score", bias: false };

/// Llama (arXiv:2302.13971; grouped keys and values since arXiv:2307.09288).
pub(super) const LLAMA: Family = Family {
    name: "llama",
    architectures: &["LlamaForCausalLM", "LlamaForSequenceClassification", "LlamaModel"],
    fields: USUAL_FIELDS,
    body: "model",
    layers: "layers",
    linears: &seven(Attention, Attention, MlpBias),
    conv1d: false,
    norms: &[
        ("input_layernorm", NormRole::BeforeAttention),
        ("post_attention_layernorm", NormRole::BeforeMlp),
    ],
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

/// Mistral (arXiv:2310.06825): Llama, with a window.
pub(super) const MISTRAL: Family = Family {
    name: "mistral",
    architectures: &["MistralForCausalLM", "MistralForSequenceClassification", "MistralModel"],
    fields: Fields { kv_heads: Some(8), positions: ("max_position_embeddings", 131_072), ..USUAL_FIELDS },
    linears: &seven(Never, Never, Never),
    windows: Windows::All(Some(4096)),
    ..LLAMA
};

/// Qwen2 (arXiv:2407.10671): biases of queries, keys and values; upper layers may have a window.
pub(super) const QWEN2: Family = Family {
    name: "qwen2",
    architectures: &["Qwen2ForCausalLM", "Qwen2ForSequenceClassification", "Qwen2Model"],
    fields: Fields { kv_heads: Some(32), positions: ("max_position_embeddings", 32_768), ..USUAL_FIELDS },
    linears: &seven(Always, Never, Never),
    windows: Windows::Late,
    ..LLAMA
};

/// Qwen3 (arXiv:2505.09388): norms of queries and keys.
pub(super) const QWEN3: Family = Family {
    name: "qwen3",
    architectures: &["Qwen3ForCausalLM", "Qwen3ForSequenceClassification", "Qwen3Model"],
    fields: Fields { head_dim: Some(128), ..QWEN2.fields },
    linears: &seven(Attention, Attention, Never),
    norms: &[
        ("self_attn.q_norm", NormRole::Q),
        ("self_attn.k_norm", NormRole::K),
        ("input_layernorm", NormRole::BeforeAttention),
        ("post_attention_layernorm", NormRole::BeforeMlp),
    ],
    windows: Windows::Late,
    ..LLAMA
};

/// Gemma 2 (arXiv:2408.00118): norms around each part, capped scores, a window in every other layer.
pub(super) const GEMMA2: Family = Family {
    name: "gemma2",
    architectures: &["Gemma2ForCausalLM", "Gemma2ForSequenceClassification", "Gemma2Model"],
    fields: Fields {
        kv_heads: Some(4),
        head_dim: Some(256),
        positions: ("max_position_embeddings", 8192),
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        tied: true,
        softcaps: Some((Some(50.0), Some(30.0))),
        ..USUAL_FIELDS
    },
    linears: &seven(Attention, Attention, Never),
    norms: &[
        ("input_layernorm", NormRole::BeforeAttention),
        ("post_attention_layernorm", NormRole::AfterAttention),
        ("pre_feedforward_layernorm", NormRole::BeforeMlp),
        ("post_feedforward_layernorm", NormRole::AfterMlp),
    ],
    norm: NormKind::RmsPlusOne,
    placement: Placement::Around,
    windows: Windows::AllBut(2),
    scaled_embedding: true,
    ..LLAMA
};

/// Gemma 3's text model (arXiv:2503.19786): norms of queries and keys, other rotary embeddings in layers with a window.
pub(super) const GEMMA3: Family = Family {
    name: "gemma3_text",
    architectures: &["Gemma3ForCausalLM", "Gemma3TextForSequenceClassification", "Gemma3TextModel"],
    fields: Fields {
        positions: ("max_position_embeddings", 131_072),
        softcaps: Some((None, None)),
        ..GEMMA2.fields
    },
    norms: &[
        ("self_attn.q_norm", NormRole::Q),
        ("self_attn.k_norm", NormRole::K),
        ("input_layernorm", NormRole::BeforeAttention),
        ("post_attention_layernorm", NormRole::AfterAttention),
        ("pre_feedforward_layernorm", NormRole::BeforeMlp),
        ("post_feedforward_layernorm", NormRole::AfterMlp),
    ],
    positions: PositionRule::RopeByWindow,
    windows: Windows::AllBut(6),
    ..GEMMA2
};

/// Phi-3 (arXiv:2404.14219): queries, keys and values in one layer, gate and up in another.
pub(super) const PHI3: Family = Family {
    name: "phi3",
    architectures: &["Phi3ForCausalLM", "Phi3ForSequenceClassification", "Phi3Model"],
    fields: Fields {
        positions: ("max_position_embeddings", 4096),
        eps: ("rms_norm_eps", 1e-5),
        ..USUAL_FIELDS
    },
    linears: &[
        row("self_attn.o_proj", Role::O, Queries, Hidden, Never),
        row("self_attn.qkv_proj", Role::Qkv, Hidden, Qkv, Never),
        row("mlp.gate_up_proj", Role::GateUp, Hidden, TwoMlp, Never),
        row("mlp.down_proj", Role::Down, Mlp, Hidden, Never),
    ],
    windows: Windows::All(None),
    ..LLAMA
};

/// GPT-2 (Radford et al. 2019): learned positions, layer norms, a plain MLP, weights stored `[in, out]`.
pub(super) const GPT2: Family = Family {
    name: "gpt2",
    architectures: &["GPT2LMHeadModel", "GPT2ForSequenceClassification", "GPT2Model"],
    fields: Fields {
        hidden: "n_embd",
        layers: "n_layer",
        heads: "n_head",
        mlp: "n_inner",
        mlp_is_four_hidden: true,
        positions: ("n_positions", 1024),
        activation: ("activation_function", "gelu_new"),
        eps: ("layer_norm_epsilon", 1e-5),
        tied: true,
        ..USUAL_FIELDS
    },
    body: "transformer",
    layers: "h",
    linears: &[
        row("attn.c_attn", Role::Qkv, Hidden, Qkv, Always),
        row("attn.c_proj", Role::O, Hidden, Hidden, Always),
        row("mlp.c_fc", Role::Up, Hidden, Mlp, Always),
        row("mlp.c_proj", Role::Down, Mlp, Hidden, Always),
    ],
    conv1d: true,
    norms: &[("ln_1", NormRole::BeforeAttention), ("ln_2", NormRole::BeforeMlp)],
    outer_norms: &[("ln_f", NormRole::Final)],
    embeddings: &[("wte", EmbeddingRole::Tokens), ("wpe", EmbeddingRole::Positions)],
    norm: NormKind::Layer,
    gated: false,
    positions: PositionRule::Learned,
    ..LLAMA
};
