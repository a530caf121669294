//! config.json of a Hugging Face model, in both generations of its field names.

use serde_json::{Map, Value};

use super::{
    BaseError,
    family::{self, Family},
};

/// Transformer layers, widths and heads that a base may have; more is a damaged file.
const MAX_SIZE: u64 = 1 << 24;

/// Rotary position embedding (arXiv:2104.09864).
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

/// What the MLP's gate goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
}

/// The fields of config.json that shape a decoder.
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
    pub norm_eps: f64,
    pub rope: Rope,
    pub activation: Activation,
    pub tied: bool,
    pub attention_bias: bool,
    pub mlp_bias: bool,
}

impl Config {
    /// Reads config.json; defaults are those of transformers' configuration class.
    pub fn parse(text: &str) -> Result<Self, BaseError> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| BaseError::ConfigJson(error.to_string()))?;
        let Value::Object(fields) = value else {
            return Err(BaseError::ConfigJson("does not hold an object".to_owned()));
        };
        let family = family(&fields)?;
        let mut reader = Reader { fields: &fields, errors: Vec::new() };
        let config = reader.config(family);
        if reader.errors.is_empty() { Ok(config) } else { Err(BaseError::Config(reader.errors)) }
    }
}

fn family(fields: &Map<String, Value>) -> Result<&'static Family, BaseError> {
    let architecture = fields.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let model_type = fields.get("model_type").and_then(Value::as_str);
    let family = match (architecture, model_type) {
        (Some(architecture), _) => family::by_architecture(architecture),
        (None, Some(model_type)) => family::by_model_type(model_type),
        (None, None) => None,
    };
    family.ok_or_else(|| BaseError::UnknownArchitecture {
        found: architecture
            .or(model_type)
            .unwrap_or("(neither `architectures` nor `model_type` is given)")
            .to_owned(),
        known: family::known(),
    })
}

struct Reader<'a> {
    fields: &'a Map<String, Value>,
    errors: Vec<String>,
}

impl Reader<'_> {
    fn config(&mut self, family: &'static Family) -> Config {
        let hidden = self.size("hidden_size", None);
        let heads = self.size("num_attention_heads", None);
        let kv_heads = self.size("num_key_value_heads", Some(heads));
        let head_dim = self.size("head_dim", Some(hidden / heads));
        self.rule(heads.is_multiple_of(kv_heads), || {
            format!("num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv_heads})")
        });
        self.rule(head_dim.is_multiple_of(2), || {
            format!("head_dim ({head_dim}) is odd; rotary positions need pairs")
        });
        if let Some(quantized) = self.get("quantization_config") {
            let method =
                quantized.get("quant_method").and_then(Value::as_str).unwrap_or("unknown").to_owned();
            self.errors.push(format!(
                "quantization_config says that the weights are quantized ({method}); use the unquantized model"
            ));
        }
        Config {
            family,
            hidden,
            layers: self.size("num_hidden_layers", None),
            heads,
            kv_heads,
            head_dim,
            mlp: self.size("intermediate_size", None),
            vocab: self.size("vocab_size", None),
            max_positions: self.size("max_position_embeddings", Some(2048)),
            norm_eps: self.number(self.fields, "rms_norm_eps", Some(1e-6)),
            rope: self.rope(),
            activation: self.activation(),
            tied: self.flag("tie_word_embeddings"),
            attention_bias: self.flag("attention_bias"),
            mlp_bias: self.flag("mlp_bias"),
        }
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    fn rule(&mut self, good: bool, message: impl FnOnce() -> String) {
        if !good {
            self.errors.push(message());
        }
    }

    /// A size from 1; 1 where there is an error, so that what follows does not divide by 0.
    fn size(&mut self, field: &str, default: Option<usize>) -> usize {
        let Some(value) = self.get(field) else {
            self.rule(default.is_some(), || format!("{field} is missing"));
            return default.unwrap_or(1).max(1);
        };
        match value.as_u64().filter(|size| (1..=MAX_SIZE).contains(size)) {
            Some(size) => size as usize,
            None => {
                let message = format!("{field} is {value}; it must be a whole number from 1 to {MAX_SIZE}");
                self.errors.push(message);
                1
            }
        }
    }

    fn flag(&mut self, field: &str) -> bool {
        let Some(value) = self.get(field) else { return false };
        let flag = value.as_bool();
        if flag.is_none() {
            let message = format!("{field} is {value}; it must be true or false");
            self.errors.push(message);
        }
        flag.unwrap_or_default()
    }

    fn number(&mut self, fields: &Map<String, Value>, field: &str, default: Option<f64>) -> f64 {
        let Some(value) = fields.get(field).filter(|value| !value.is_null()) else {
            self.rule(default.is_some(), || format!("{field} is missing"));
            return default.unwrap_or(1.0);
        };
        let number = value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        self.rule(number.is_some(), || format!("{field} is {value}; it must be a number above 0"));
        number.unwrap_or(1.0)
    }

    fn activation(&mut self) -> Activation {
        let name = self.get("hidden_act").and_then(Value::as_str).unwrap_or("silu").to_owned();
        self.rule(matches!(name.as_str(), "silu" | "swish"), || {
            format!("hidden_act {name} is not known; known is silu")
        });
        Activation::Silu
    }

    /// transformers 5 writes `rope_parameters`; before it, `rope_theta` and `rope_scaling`.
    fn rope(&mut self) -> Rope {
        let empty = Map::new();
        let fields = self.fields;
        let object = |field: &str| fields.get(field).and_then(Value::as_object);
        let parameters = object("rope_parameters").or_else(|| object("rope_scaling")).unwrap_or(&empty);
        let theta = if parameters.contains_key("rope_theta") { parameters } else { fields };
        let theta = self.number(theta, "rope_theta", Some(10_000.0));
        let kind = parameters.get("rope_type").or_else(|| parameters.get("type")).and_then(Value::as_str);
        let scaling = match kind.unwrap_or("default") {
            "default" => RopeScaling::None,
            "llama3" => RopeScaling::Llama3 {
                factor: self.number(parameters, "factor", None),
                low_freq_factor: self.number(parameters, "low_freq_factor", None),
                high_freq_factor: self.number(parameters, "high_freq_factor", None),
                original_max_positions: self.number(parameters, "original_max_position_embeddings", None),
            },
            other => {
                self.errors.push(format!("rope_type {other} is not known; known are default, llama3"));
                RopeScaling::None
            }
        };
        Rope { theta, scaling }
    }
}
