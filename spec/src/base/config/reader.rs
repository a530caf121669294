//! Reads fields of config.json, and collects what is wrong with them.

use serde_json::{Map, Value};

use crate::base::{BaseError, parts::Activation};

/// Transformer layers, widths and heads that a base may have; more is a damaged file.
const MAX_SIZE: u64 = 1 << 24;

/// The fields, and every error that was met in them.
pub(super) struct Reader<'a> {
    pub fields: &'a Map<String, Value>,
    pub errors: Vec<String>,
}

impl<'a> Reader<'a> {
    pub fn new(fields: &'a Map<String, Value>) -> Self {
        Self { fields, errors: Vec::new() }
    }

    /// The value, or every error.
    pub fn finish<T>(self, value: T) -> Result<T, BaseError> {
        if self.errors.is_empty() { Ok(value) } else { Err(BaseError::Config(self.errors)) }
    }

    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    pub fn rule(&mut self, good: bool, message: impl FnOnce() -> String) {
        if !good {
            self.errors.push(message());
        }
    }

    /// Fields that would change what the model computes in a way that is not known here.
    pub fn refuse_what_is_not_computed(&mut self, causal: bool) {
        if let Some(quantized) = self.get("quantization_config") {
            let method = quantized.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
            self.errors.push(format!(
                "quantization_config says that the weights are quantized ({method}); use the unquantized model"
            ));
        }
        for (field, message) in [
            ("add_cross_attention", "cross-attention is not known"),
            ("use_bidirectional_attention", "attention to later tokens is not known in this family"),
            ("scale_attn_by_inverse_layer_idx", "attention scaled by the layer's number is not known"),
        ] {
            if self.flag(field, false) {
                self.errors.push(format!("{field} is true; {message}"));
            }
        }
        if !causal && self.flag("is_decoder", false) {
            self.errors.push("is_decoder is true; this family is known as an encoder only".to_owned());
        }
        if let Some(other) = self.get("position_embedding_type").filter(|kind| *kind != "absolute") {
            self.errors.push(format!("position_embedding_type is {other}; known is \"absolute\""));
        }
    }

    /// A size from 1; 1 where there is an error, so that what follows does not divide by 0.
    pub fn size(&mut self, field: &str, default: Option<usize>) -> usize {
        if self.get(field).is_none() {
            self.rule(default.is_some(), || format!("{field} is missing"));
            return default.unwrap_or(1).max(1);
        }
        self.whole(field, 1).unwrap_or(1)
    }

    /// A size that may be 0.
    pub fn size_or_zero(&mut self, field: &str, default: usize) -> usize {
        if self.get(field).is_none() { default } else { self.whole(field, 0).unwrap_or(0) }
    }

    fn whole(&mut self, field: &str, from: u64) -> Option<usize> {
        let value = self.get(field)?;
        let size = value.as_u64().filter(|size| (from..=MAX_SIZE).contains(size));
        self.rule(size.is_some(), || {
            format!("{field} is {value}; it must be a whole number from {from} to {MAX_SIZE}")
        });
        size.map(|size| size as usize)
    }

    pub fn flag(&mut self, field: &str, default: bool) -> bool {
        let Some(value) = self.get(field) else { return default };
        self.rule(value.is_boolean(), || format!("{field} is {value}; it must be true or false"));
        value.as_bool().unwrap_or(default)
    }

    /// A number above 0.
    pub fn number(&mut self, field: &str, default: Option<f64>) -> f64 {
        self.number_of(self.fields, field, default)
    }

    /// The same of an object within config.json.
    pub fn number_of(&mut self, fields: &Map<String, Value>, field: &str, default: Option<f64>) -> f64 {
        let number = self.optional_number(fields, field);
        let is_there = fields.get(field).is_some_and(|value| !value.is_null());
        self.rule(is_there || default.is_some(), || format!("{field} is missing"));
        number.or(default).unwrap_or(1.0)
    }

    /// The same where silence means something.
    pub fn optional_number(&mut self, fields: &Map<String, Value>, field: &str) -> Option<f64> {
        let value = fields.get(field).filter(|value| !value.is_null())?;
        let number = value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        self.rule(number.is_some(), || format!("{field} is {value}; it must be a number above 0"));
        number
    }

    /// A cap of scores, in a family that has them with this default; an explicit null means none.
    pub fn softcap(&mut self, field: &str, default: Option<Option<f64>>) -> Option<f64> {
        let default = default?;
        if !self.fields.contains_key(field) {
            return default;
        }
        self.optional_number(self.fields, field)
    }

    /// `sliding_window`; an explicit null means none.
    pub fn window(&mut self, default: Option<usize>) -> Option<usize> {
        if !self.fields.contains_key("sliding_window") {
            return default;
        }
        self.get("sliding_window")?;
        Some(self.size("sliding_window", None))
    }

    /// `layer_types`: whether each layer sees a window only.
    pub fn layer_types(&mut self, layers: usize) -> Option<Vec<bool>> {
        let value = self.get("layer_types")?;
        let types: Option<Vec<bool>> = value.as_array().and_then(|types| {
            let sliding = |kind: &Value| match kind.as_str()? {
                "sliding_attention" => Some(true),
                "full_attention" => Some(false),
                _ => None,
            };
            types.iter().map(sliding).collect()
        });
        let types = types.filter(|types| types.len() == layers);
        self.rule(types.is_some(), || {
            format!("layer_types must name full_attention or sliding_attention for each of {layers} layers")
        });
        types
    }

    pub fn activation(&mut self, field: &str, default: &str) -> Activation {
        let name = self.get(field).and_then(Value::as_str).unwrap_or(default);
        match name {
            "silu" | "swish" => Activation::Silu,
            "gelu" | "gelu_python" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast" | "gelu_accurate" => {
                Activation::GeluTanh
            }
            "relu" => Activation::Relu,
            _ => {
                self.errors.push(format!(
                    "{field} {name} is not known; known are silu, gelu, gelu_new, gelu_pytorch_tanh, relu"
                ));
                Activation::Silu
            }
        }
    }
}
