//! What a transformer is made of, as data: the words in which a base's shape is described.

use super::Dtype;

/// What the task wants at the end of the transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Head {
    /// The next token's logits: `AutoModelForCausalLM`.
    LanguageModel,
    /// Logits of classes, or one score, of a whole sequence: `AutoModelForSequenceClassification`.
    Classifier {
        /// Classes; 1 for a score.
        labels: usize,
    },
}

/// How a norm computes, all norms of a base alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Its formula.
    pub kind: NormKind,
    /// What is added to the mean square or variance.
    pub eps: f64,
}

/// A norm's formula.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// w · x / rms(x) (arXiv:1910.07467).
    Rms,
    /// (1 + w) · x / rms(x): Gemma's.
    RmsPlusOne,
    /// w · (x − mean) / std + b (arXiv:1607.06450); these norms have biases, the others none.
    Layer,
}

/// Where the norms of a transformer layer stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Before each part: x + part(norm(x)).
    Before,
    /// Before and after each part: x + norm(part(norm(x))).
    Around,
    /// After each sum: norm(x + part(x)).
    After,
}

/// How a token's position enters.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// Rotary embeddings; a layer's [`LayerKind::rope`] says which of these it uses.
    Rope(Vec<Rope>),
    /// A learned vector for each position, added to the token's.
    Learned {
        /// Row of the first position (RoBERTa keeps the first rows for padding).
        offset: usize,
    },
}

/// Rotary position embedding (arXiv:2104.09864) of whole heads, in halves: pair (i, i + D/2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the frequencies: θ in θ^(−2i/d).
    pub theta: f64,
    /// How the frequencies are stretched for longer sequences.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency is divided by `factor` (arXiv:2306.15595).
    Linear {
        /// What the frequencies are divided by.
        factor: f64,
    },
    /// θ grows with a sequence that is longer than `original_max_positions`; shorter ones are not stretched.
    Dynamic {
        /// How strongly θ grows.
        factor: f64,
        /// Positions from which on frequencies are stretched.
        original_max_positions: f64,
    },
    /// YaRN (arXiv:2309.00071): short wavelengths stay, long ones are divided by `factor`, those between are mixed; cosines
    /// and sines are multiplied by an attention factor.
    Yarn {
        /// What long wavelengths' frequencies are divided by.
        factor: f64,
        /// Positions that the model was first trained on.
        original_max_positions: f64,
        /// What cosines and sines are multiplied by; `None`: follows from `factor`, `mscale` and `mscale_all_dim`.
        attention_factor: Option<f64>,
        /// Turns within `original_max_positions` from which on a frequency stays.
        beta_fast: f64,
        /// Turns up to which a frequency is divided.
        beta_slow: f64,
        /// Numerator's weight of ln(factor) in the attention factor.
        mscale: Option<f64>,
        /// Denominator's weight of ln(factor) in the attention factor.
        mscale_all_dim: Option<f64>,
        /// Whether the bounds of the mixed range are rounded outwards to whole pairs.
        truncate: bool,
    },
    /// Llama 3.1's: long wavelengths are divided by `factor`, short ones stay, those between are mixed.
    Llama3 {
        /// What long wavelengths' frequencies are divided by.
        factor: f64,
        /// `original_max_positions` / this is the shortest wavelength that is long.
        low_freq_factor: f64,
        /// `original_max_positions` / this is the longest wavelength that is short.
        high_freq_factor: f64,
        /// Positions that the model was first trained on.
        original_max_positions: f64,
    },
}

/// What the MLP's gate, or its only inner layer, goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// x · Φ(x) by the error function (arXiv:1606.08415).
    Gelu,
    /// Its approximation by tanh.
    GeluTanh,
    /// max(x, 0).
    Relu,
}

/// How attention scores are made, in all layers alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// A token sees itself and earlier ones only.
    pub causal: bool,
    /// What q·k is multiplied by.
    pub scale: f64,
    /// c in c · tanh(score / c), which then takes the score's place.
    pub softcap: Option<f64>,
}

/// In what one transformer layer differs from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerKind {
    /// Tokens that a token sees, itself included; `None`: all.
    pub window: Option<usize>,
    /// Which of [`Positions::Rope`] it uses; 0 where there are none.
    pub rope: usize,
}

/// What follows the last transformer layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadShape {
    /// The linear layer of [`Role::Head`], for any token.
    LanguageModel,
    /// An optional dense layer with an activation, then the linear layer of [`Role::Classifier`], for one token.
    Classifier {
        /// Its outputs.
        labels: usize,
        /// The token that it sees.
        token: HeadToken,
        /// The dense layer before the last one.
        dense: Option<HeadDense>,
    },
}

/// The token of a sequence that a classifier sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadToken {
    /// The first: encoders.
    First,
    /// The last: decoders.
    Last,
}

/// A classifier's dense layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadDense {
    /// [`Role::Pooler`], which belongs to the pretrained model, or [`Role::ClassifierDense`], which does not.
    pub role: Role,
    /// What its output goes through.
    pub activation: HeadActivation,
}

/// What a classifier's dense layer goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadActivation {
    /// tanh(x).
    Tanh,
    /// max(x, 0).
    Relu,
}

/// What a linear layer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Attention's queries.
    Q,
    /// Attention's keys.
    K,
    /// Attention's values.
    V,
    /// Queries, keys and values, one below the other.
    Qkv,
    /// Attention's output.
    O,
    /// What goes through the activation of a gated MLP.
    Gate,
    /// What the gate is multiplied with; in a plain MLP, what goes through the activation.
    Up,
    /// Gate and up, one below the other.
    GateUp,
    /// The MLP's output.
    Down,
    /// Logits of the next token.
    Head,
    /// A pretrained classifier's dense layer.
    Pooler,
    /// A new classifier's dense layer.
    ClassifierDense,
    /// Logits of classes.
    Classifier,
}

impl Role {
    /// It stands after the last transformer layer.
    pub fn is_last(self) -> bool {
        matches!(self, Role::Head | Role::Pooler | Role::ClassifierDense | Role::Classifier)
    }
}

/// One linear layer of a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearModule {
    /// `model.layers.0.self_attn.q_proj`; its weight is this plus `.weight`, its bias plus `.bias`.
    pub name: String,
    /// Width of its input.
    pub in_features: usize,
    /// Width of its output.
    pub out_features: usize,
    /// Whether it has a bias.
    pub bias: bool,
    /// The transformer layer that it belongs to; `None` behind the last one.
    pub layer: Option<usize>,
    /// What it is for.
    pub role: Role,
    /// Its weight is stored `[in, out]` (GPT-2's Conv1D) instead of `[out, in]`.
    pub conv1d: bool,
}

/// What a norm is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NormRole {
    /// Of the attention's input.
    BeforeAttention,
    /// Of the attention's output ([`Placement::Around`]), or of its sum with the residual ([`Placement::After`]).
    AfterAttention,
    /// Of the MLP's input.
    BeforeMlp,
    /// Of the MLP's output, or of its sum with the residual.
    AfterMlp,
    /// Of each head of queries, before positions enter.
    Q,
    /// Of each head of keys, before positions enter.
    K,
    /// Of the last layer's output.
    Final,
    /// Of the sum of embeddings.
    Embedding,
}

/// One norm of a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormModule {
    /// `model.norm`; its weight is this plus `.weight`, its bias (of [`NormKind::Layer`]) plus `.bias`.
    pub name: String,
    /// Width of what it norms.
    pub width: usize,
    /// The transformer layer that it belongs to.
    pub layer: Option<usize>,
    /// What it is for.
    pub role: NormRole,
}

/// What an embedding is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EmbeddingRole {
    /// A vector for each token of the vocabulary.
    Tokens,
    /// A vector for each position.
    Positions,
    /// A vector for the first and the second text of a pair.
    TokenTypes,
}

/// One embedding of a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddingModule {
    /// `model.embed_tokens`; its weight `[rows, columns]` is this plus `.weight`.
    pub name: String,
    /// Vectors.
    pub rows: usize,
    /// Width of a vector.
    pub columns: usize,
    /// What it is for.
    pub role: EmbeddingRole,
}

/// A tensor as the files describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name in the file: with or without the model's prefix, of either generation.
    pub stored: String,
    /// Name of the file that holds it.
    pub file: String,
    /// Type of its numbers.
    pub dtype: Dtype,
    /// Its shape, as stored.
    pub shape: Vec<usize>,
    /// First byte in the file, and the first after its last.
    pub range: (u64, u64),
}
