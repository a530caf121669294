//! config.json of a Hugging Face model, in both generations of its field names; defaults are those of transformers'
//! configuration classes.

use serde_json::{Map, Value};

use super::{
    BaseError,
    family::{self, Family, Fields, PositionRule, Windows},
    parts::{Activation, Attention, EmbeddingRole, LayerKind, Norm, Positions, Rope, RopeScaling},
};
use reader::Reader;

mod reader;
mod rope;

/// What config.json says of a model's shape.
#[derive(Debug)]
pub(super) struct Config {
    pub family: &'static Family,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub mlp: usize,
    pub vocab: usize,
    pub max_positions: usize,
    pub tied: bool,
    pub norm: Norm,
    pub positions: Positions,
    pub activation: Activation,
    pub attention: Attention,
    pub layer_kinds: Vec<LayerKind>,
    pub embedding_scale: f64,
    pub final_softcap: Option<f64>,
    pub token_types: usize,
    pub attention_bias: bool,
    pub mlp_bias: bool,
    pub initializer_range: f64,
}

impl Config {
    /// Reads config.json.
    pub fn parse(text: &str) -> Result<Self, BaseError> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| BaseError::ConfigJson(error.to_string()))?;
        let Value::Object(fields) = value else {
            return Err(BaseError::ConfigJson("does not hold an object".to_owned()));
        };
        let family = family(&fields)?;
        let mut reader = Reader::new(&fields);
        reader.refuse_what_is_not_computed(family.causal);
        let config = reader.config(family);
        reader.finish(config)
    }
}

fn family(fields: &Map<String, Value>) -> Result<&'static Family, BaseError> {
    let architecture = fields.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let model_type = fields.get("model_type").and_then(Value::as_str);
    // Of a head that is not known, the transformer may still be: a masked language model is classified with.
    let family =
        architecture.and_then(family::by_architecture).or_else(|| model_type.and_then(family::by_model_type));
    family.ok_or_else(|| BaseError::UnknownArchitecture {
        found: architecture
            .or(model_type)
            .unwrap_or("(neither `architectures` nor `model_type` is given)")
            .to_owned(),
        known: family::known(),
    })
}

/// Heads and widths.
struct Sizes {
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    mlp: usize,
}

/// Tokens of the longest sequence: dynamic scaling is there for more than `max_position_embeddings`.
fn longest(max_positions: usize, positions: &Positions) -> usize {
    let Positions::Rope(ropes) = positions else { return max_positions };
    let factor = |rope: &Rope| match rope.scaling {
        RopeScaling::Dynamic { factor, .. } => factor,
        _ => 1.0,
    };
    let factor = ropes.iter().map(factor).fold(1.0, f64::max);
    (max_positions as f64 * factor) as usize
}

impl Reader<'_> {
    fn config(&mut self, family: &'static Family) -> Config {
        let fields = &family.fields;
        let sizes = self.sizes(fields, family.positions.is_rope());
        let rows = self.size(fields.positions.0, Some(fields.positions.1));
        let windows = self.windows(&family.windows, sizes.layers);
        let (positions, max_positions) = self.positions(&family.positions, rows);
        let ropes_differ = matches!(&positions, Positions::Rope(ropes) if ropes.len() > 1);
        let kind =
            |window: Option<usize>| LayerKind { window, rope: usize::from(ropes_differ && window.is_some()) };
        let has_types = family.embeddings.iter().any(|(_, role)| *role == EmbeddingRole::TokenTypes);
        Config {
            family,
            hidden: sizes.hidden,
            layers: sizes.layers,
            heads: sizes.heads,
            kv_heads: sizes.kv_heads,
            head_dim: sizes.head_dim,
            mlp: sizes.mlp,
            vocab: self.size("vocab_size", None),
            max_positions: longest(max_positions, &positions),
            tied: family.language_model.is_some() && self.flag("tie_word_embeddings", fields.tied),
            norm: Norm { kind: family.norm, eps: self.number(fields.eps.0, Some(fields.eps.1)) },
            positions,
            activation: self.activation(fields.activation.0, fields.activation.1),
            attention: self.attention(family.causal, fields, sizes.head_dim),
            layer_kinds: windows.into_iter().map(kind).collect(),
            embedding_scale: if family.scaled_embedding { (sizes.hidden as f64).sqrt() } else { 1.0 },
            final_softcap: self.softcap("final_logit_softcapping", fields.softcaps.map(|caps| caps.1)),
            token_types: if has_types { self.size("type_vocab_size", Some(2)) } else { 0 },
            attention_bias: self.flag("attention_bias", false),
            mlp_bias: self.flag("mlp_bias", false),
            initializer_range: self.number("initializer_range", Some(0.02)),
        }
    }

    fn sizes(&mut self, fields: &Fields, rotary: bool) -> Sizes {
        let hidden = self.size(fields.hidden, None);
        let heads = self.size(fields.heads, None);
        // An explicit null means as many as queries, in every family.
        let kv_default = fields.kv_heads.filter(|_| !self.fields.contains_key("num_key_value_heads"));
        let kv_heads = self.size("num_key_value_heads", Some(kv_default.unwrap_or(heads)));
        let head_dim = if rotary {
            self.size("head_dim", Some(fields.head_dim.unwrap_or(hidden / heads)))
        } else {
            self.rule(hidden.is_multiple_of(heads), || {
                format!("{} ({hidden}) is no multiple of {} ({heads})", fields.hidden, fields.heads)
            });
            hidden / heads
        };
        self.rule(heads.is_multiple_of(kv_heads), || {
            format!("num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv_heads})")
        });
        self.rule(!rotary || head_dim.is_multiple_of(2), || {
            format!("head_dim ({head_dim}) is odd; rotary positions need pairs")
        });
        let mlp = self.size(fields.mlp, fields.mlp_is_four_hidden.then_some(4 * hidden));
        Sizes { hidden, layers: self.size(fields.layers, None), heads, kv_heads, head_dim, mlp }
    }

    fn attention(&mut self, causal: bool, fields: &Fields, head_dim: usize) -> Attention {
        let scale = match fields.softcaps {
            Some(_) => self.number("query_pre_attn_scalar", Some(256.0)),
            None if !self.flag("scale_attn_weights", true) => 1.0,
            None => head_dim as f64,
        };
        let softcap = self.softcap("attn_logit_softcapping", fields.softcaps.map(|caps| caps.0));
        Attention { causal, scale: 1.0 / scale.sqrt(), softcap }
    }

    /// The window of each layer.
    fn windows(&mut self, rule: &Windows, layers: usize) -> Vec<Option<usize>> {
        let width = match rule {
            Windows::None => None,
            Windows::Late if !self.flag("use_sliding_window", false) => None,
            Windows::All(default) => self.window(*default),
            Windows::Late | Windows::AllBut(_) => self.window(Some(4096)),
        };
        let by_rule: Box<dyn Fn(usize) -> bool> = match rule {
            Windows::None | Windows::All(_) => return vec![width; layers],
            Windows::Late => {
                let first = self.size_or_zero("max_window_layers", 28);
                Box::new(move |layer| layer >= first)
            }
            Windows::AllBut(n) => {
                let n = self.size("sliding_window_pattern", Some(*n));
                Box::new(move |layer| !(layer + 1).is_multiple_of(n))
            }
        };
        let types = self.layer_types(layers);
        (0..layers)
            .map(|layer| types.as_ref().map_or_else(|| by_rule(layer), |types| types[layer]))
            .map(|sliding| width.filter(|_| sliding))
            .collect()
    }

    /// How positions enter, and how many there are when the table has that many rows.
    fn positions(&mut self, rule: &PositionRule, rows: usize) -> (Positions, usize) {
        match rule {
            PositionRule::Rope => (Positions::Rope(vec![self.rope(rows)]), rows),
            PositionRule::RopeByWindow => (Positions::Rope(self.ropes_by_window(rows).into()), rows),
            PositionRule::Learned => (Positions::Learned { offset: 0 }, rows),
            PositionRule::LearnedAfterPadding => {
                let offset = self.size_or_zero("pad_token_id", 1) + 1;
                self.rule(rows > offset, || {
                    format!("max_position_embeddings ({rows}) leaves no row behind that of pad_token_id")
                });
                (Positions::Learned { offset }, rows.saturating_sub(offset).max(1))
            }
        }
    }
}

impl PositionRule {
    fn is_rope(&self) -> bool {
        matches!(self, Self::Rope | Self::RopeByWindow)
    }
}
