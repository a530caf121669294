//! Rotary embeddings of config.json: `rope_parameters` of transformers 5, before it `rope_theta` and `rope_scaling`.

use serde_json::{Map, Value};

use super::Reader;
use crate::base::parts::{Rope, RopeScaling};

const KINDS: &str = "default, linear, dynamic, yarn, llama3";

impl Reader<'_> {
    /// The rotary embedding of a model with that many positions.
    pub(super) fn rope(&mut self, max_positions: usize) -> Rope {
        let empty = Map::new();
        let object = |field: &str| self.fields.get(field).and_then(Value::as_object);
        // A file of both generations is read as transformers reads it: the old field overrules the new one.
        let parameters = object("rope_scaling").or_else(|| object("rope_parameters")).unwrap_or(&empty);
        let default = self.number("rope_theta", Some(10_000.0));
        self.one_rope(parameters, default, max_positions)
    }

    /// Gemma 3's: of layers that see everything, and of layers with a window.
    pub(super) fn ropes_by_window(&mut self, max_positions: usize) -> [Rope; 2] {
        let empty = Map::new();
        let object = |field: &str| self.fields.get(field).and_then(Value::as_object);
        let nested =
            |kind: &str| object("rope_parameters").and_then(|all| all.get(kind)).and_then(Value::as_object);
        let global = object("rope_scaling").or_else(|| nested("full_attention")).unwrap_or(&empty);
        let local = nested("sliding_attention").unwrap_or(&empty);
        let thetas = (self.number("rope_theta", Some(1e6)), self.number("rope_local_base_freq", Some(1e4)));
        [self.one_rope(global, thetas.0, max_positions), self.one_rope(local, thetas.1, max_positions)]
    }

    fn one_rope(&mut self, parameters: &Map<String, Value>, theta: f64, max_positions: usize) -> Rope {
        let theta = self.number_of(parameters, "rope_theta", Some(theta));
        let partial = self.number_of(parameters, "partial_rotary_factor", Some(1.0));
        let partial = self.number("partial_rotary_factor", Some(partial));
        self.rule(partial == 1.0, || {
            format!("partial_rotary_factor is {partial}; heads that turn in part only are not known")
        });
        Rope { theta, scaling: self.scaling(parameters, max_positions) }
    }

    fn scaling(&mut self, parameters: &Map<String, Value>, max_positions: usize) -> RopeScaling {
        let kind = ["rope_type", "type"].iter().find_map(|field| parameters.get(*field)?.as_str());
        let original = "original_max_position_embeddings";
        // Phi-3's first files called it su, or yarn.
        let kind = if parameters.contains_key("short_factor") { Some("longrope") } else { kind };
        match kind.unwrap_or("default") {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: self.number_of(parameters, "factor", None) },
            "dynamic" => RopeScaling::Dynamic {
                factor: self.number_of(parameters, "factor", None),
                original_max_positions: max_positions as f64,
            },
            "llama3" => RopeScaling::Llama3 {
                factor: self.number_of(parameters, "factor", None),
                low_freq_factor: self.number_of(parameters, "low_freq_factor", None),
                high_freq_factor: self.number_of(parameters, "high_freq_factor", None),
                original_max_positions: self.number_of(parameters, original, Some(max_positions as f64)),
            },
            "yarn" => {
                let original_max_positions = self.number_of(parameters, original, Some(max_positions as f64));
                let stretched = max_positions as f64 / original_max_positions;
                RopeScaling::Yarn {
                    factor: self.number_of(parameters, "factor", Some(stretched)),
                    original_max_positions,
                    attention_factor: self.optional_number(parameters, "attention_factor"),
                    beta_fast: self.number_of(parameters, "beta_fast", Some(32.0)),
                    beta_slow: self.number_of(parameters, "beta_slow", Some(1.0)),
                    mscale: self.optional_number(parameters, "mscale"),
                    mscale_all_dim: self.optional_number(parameters, "mscale_all_dim"),
                    truncate: parameters.get("truncate").and_then(Value::as_bool).unwrap_or(true),
                }
            }
            other => {
                self.errors.push(format!("rope_type {other} is not known; known are {KINDS}"));
                RopeScaling::None
            }
        }
    }
}
