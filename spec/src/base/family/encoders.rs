//! Families of encoders, which classify a whole sequence by its first token.

use super::{
    Bias::Always,
    ClassifierRow,
    Dim::{Hidden, Mlp},
    Family, Fields, PositionRule, USUAL_FIELDS, Windows, row,
};
use crate::base::parts::{EmbeddingRole, HeadActivation, HeadToken, NormKind, NormRole, Placement, Role};

const BERT_FIELDS: Fields = Fields {
    positions: ("max_position_embeddings", 512),
    activation: ("hidden_act", "gelu"),
    eps: ("layer_norm_eps", 1e-12),
    ..USUAL_FIELDS
};

/// BERT (arXiv:1810.04805).
pub(super) const BERT: Family = Family {
    name: "bert",
    architectures: &["BertForSequenceClassification", "BertForMaskedLM", "BertForPreTraining", "BertModel"],
    fields: BERT_FIELDS,
    body: "bert",
    layers: "encoder.layer",
    linears: &[
        row("attention.self.query", Role::Q, Hidden, Hidden, Always),
        row("attention.self.key", Role::K, Hidden, Hidden, Always),
        row("attention.self.value", Role::V, Hidden, Hidden, Always),
        row("attention.output.dense", Role::O, Hidden, Hidden, Always),
        row("intermediate.dense", Role::Up, Hidden, Mlp, Always),
        row("output.dense", Role::Down, Mlp, Hidden, Always),
    ],
    conv1d: false,
    norms: &[
        ("attention.output.LayerNorm", NormRole::AfterAttention),
        ("output.LayerNorm", NormRole::AfterMlp),
    ],
    outer_norms: &[("embeddings.LayerNorm", NormRole::Embedding)],
    embeddings: &[
        ("embeddings.word_embeddings", EmbeddingRole::Tokens),
        ("embeddings.position_embeddings", EmbeddingRole::Positions),
        ("embeddings.token_type_embeddings", EmbeddingRole::TokenTypes),
    ],
    norm: NormKind::Layer,
    placement: Placement::After,
    gated: false,
    causal: false,
    positions: PositionRule::Learned,
    windows: Windows::None,
    scaled_embedding: false,
    language_model: None,
    classifier: ClassifierRow {
        token: HeadToken::First,
        dense: Some(("bert.pooler.dense", Role::Pooler, HeadActivation::Tanh)),
        last: "classifier",
        bias: true,
    },
};

/// RoBERTa (arXiv:1907.11692): BERT, with positions behind the padding token's and a classifier of two layers.
pub(super) const ROBERTA: Family = Family {
    name: "roberta",
    architectures: &["RobertaForSequenceClassification", "RobertaForMaskedLM", "RobertaModel"],
    body: "roberta",
    positions: PositionRule::LearnedAfterPadding,
    classifier: ClassifierRow {
        token: HeadToken::First,
        dense: Some(("classifier.dense", Role::ClassifierDense, HeadActivation::Tanh)),
        last: "classifier.out_proj",
        bias: true,
    },
    ..BERT
};

/// XLM-RoBERTa (arXiv:1911.02116): RoBERTa for a hundred languages.
pub(super) const XLM_ROBERTA: Family = Family {
    name: "xlm-roberta",
    architectures: &["XLMRobertaForSequenceClassification", "XLMRobertaForMaskedLM", "XLMRobertaModel"],
    ..ROBERTA
};

/// DistilBERT (arXiv:1910.01108): BERT without token types and pooler, under other names.
pub(super) const DISTILBERT: Family = Family {
    name: "distilbert",
    architectures: &["DistilBertForSequenceClassification", "DistilBertForMaskedLM", "DistilBertModel"],
    fields: Fields {
        hidden: "dim",
        layers: "n_layers",
        heads: "n_heads",
        mlp: "hidden_dim",
        activation: ("activation", "gelu"),
        ..BERT_FIELDS
    },
    body: "distilbert",
    layers: "transformer.layer",
    linears: &[
        row("attention.q_lin", Role::Q, Hidden, Hidden, Always),
        row("attention.k_lin", Role::K, Hidden, Hidden, Always),
        row("attention.v_lin", Role::V, Hidden, Hidden, Always),
        row("attention.out_lin", Role::O, Hidden, Hidden, Always),
        row("ffn.lin1", Role::Up, Hidden, Mlp, Always),
        row("ffn.lin2", Role::Down, Mlp, Hidden, Always),
    ],
    norms: &[("sa_layer_norm", NormRole::AfterAttention), ("output_layer_norm", NormRole::AfterMlp)],
    embeddings: &[
        ("embeddings.word_embeddings", EmbeddingRole::Tokens),
        ("embeddings.position_embeddings", EmbeddingRole::Positions),
    ],
    classifier: ClassifierRow {
        token: HeadToken::First,
        dense: Some(("pre_classifier", Role::ClassifierDense, HeadActivation::Relu)),
        last: "classifier",
        bias: true,
    },
    ..BERT
};
