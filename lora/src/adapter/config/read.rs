//! Reads PEFT's `adapter_config.json`, and refuses by name what cannot be computed.

use lorafleet_spec::job::{AdapterSpec, Init, Method, Task};
use lorafleet_spec::targets::{self, TargetRule};
use serde_json::{Map, Value};

use super::{AdapterConfig, ONLY_INITIAL, UNSET, config};
use crate::adapter::AdapterError;

/// Largest rank that is read; a file with more is damaged.
const MAX_RANK: u64 = 1 << 20;

/// Initialisations that change the base's weights in ways that are not known from the adapter: such an adapter must be
/// converted by PEFT when it is saved (`path_initial_model_for_weight_conversion`).
const CHANGES_BASE: [&str; 3] = ["corda", "loftq", "lora_ga"];

impl AdapterConfig {
    /// Reads PEFT's `adapter_config.json`. Keys that older releases lacked may be missing.
    ///
    /// # Errors
    /// When it is not JSON, not a LoRA, or sets a key whose meaning is not supported.
    pub fn parse(json: &[u8]) -> Result<Self, AdapterError> {
        let value: Value =
            serde_json::from_slice(json).map_err(|error| config(format!("is not JSON: {error}")))?;
        let Value::Object(object) = value else { return Err(config("is not a JSON object".to_owned())) };
        let fields = Fields(&object);
        let kind = fields.get("peft_type").and_then(Value::as_str).unwrap_or("missing");
        if kind != "LORA" {
            return Err(config(format!("peft_type is {kind}; only LORA can be read")));
        }
        fields.check_unset()?;
        let rank = fields.rank("r", object.get("r"))?;
        let targets = fields.rule("target_modules")?;
        let adapter = AdapterSpec {
            method: if fields.flag("use_dora") { Method::Dora } else { Method::Lora },
            init: fields.init()?,
            rank,
            alpha: fields.alpha("lora_alpha", object.get("lora_alpha"))?,
            targets: targets.ok_or_else(|| config("target_modules is missing".to_owned()))?,
            exclude: fields.rule("exclude_modules")?,
            layers: fields.layers()?,
            rank_pattern: fields.pattern("rank_pattern", |key, value| fields.rank(key, Some(value)))?,
            alpha_pattern: fields.pattern("alpha_pattern", |key, value| fields.alpha(key, Some(value)))?,
            rslora: fields.flag("use_rslora"),
            dropout: fields.dropout()?,
            layers_pattern: fields.names("layers_pattern")?,
            modules_to_save: fields.names("modules_to_save")?,
            start: None,
        };
        let text = |key| fields.get(key).and_then(Value::as_str);
        let base_model = match (text("base_model_name_or_path"), text("revision")) {
            (Some(base), Some(revision)) => Some(format!("{base}@{revision}")),
            (base, _) => base.map(str::to_owned),
        };
        Ok(Self { base_model, adapter, task: fields.task()?, fan_in_fan_out: fields.flag("fan_in_fan_out") })
    }
}

/// The object's fields, with null as good as missing.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn flag(&self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    fn check_unset(&self) -> Result<(), AdapterError> {
        for (key, unset) in UNSET {
            let Some(value) = self.get(key) else { continue };
            let empty = match value {
                Value::Bool(set) => !set,
                Value::Array(items) => items.is_empty(),
                Value::Object(items) => items.is_empty(),
                Value::String(text) => text.is_empty(),
                _ => false,
            };
            if !empty && *value != unset.value() && !ONLY_INITIAL.contains(key) {
                return Err(config(format!(
                    "{key} is {value}, which is not supported; it must be {}",
                    unset.value()
                )));
            }
        }
        Ok(())
    }

    /// How the adapter began: it matters for what becomes of the base, not for a trained adapter's own weights.
    fn init(&self) -> Result<Init, AdapterError> {
        let word = match self.get("init_lora_weights") {
            None | Some(Value::Bool(_)) => return Ok(Init::Kaiming),
            Some(Value::String(word)) => word.to_lowercase(),
            Some(other) => {
                return Err(config(format!("init_lora_weights is {other}, neither flag nor word")));
            }
        };
        match word.as_str() {
            "gaussian" => Ok(Init::Gaussian),
            "olora" => Ok(Init::Olora),
            "pissa" => Ok(Init::Pissa),
            _ if word.starts_with("pissa_niter_") || CHANGES_BASE.contains(&word.as_str()) => {
                Err(config(format!(
                    "init_lora_weights is {word}, for which the base's weights were changed by draws that are not kept; \
                     save the adapter with PEFT's path_initial_model_for_weight_conversion, then it is a plain LoRA"
                )))
            }
            // Others only choose the first A and B.
            _ => Ok(Init::Kaiming),
        }
    }

    fn task(&self) -> Result<Task, AdapterError> {
        match self.get("task_type").and_then(Value::as_str) {
            None | Some("CAUSAL_LM") => Ok(Task::CausalLm),
            Some("SEQ_CLS") => Ok(Task::Classification),
            Some(other) => {
                Err(config(format!("task_type is {other}; only CAUSAL_LM and SEQ_CLS can be read")))
            }
        }
    }

    fn dropout(&self) -> Result<f64, AdapterError> {
        let Some(value) = self.get("lora_dropout") else { return Ok(0.0) };
        let p = value.as_f64().filter(|p| (0.0..1.0).contains(p));
        p.ok_or_else(|| config(format!("lora_dropout is {value}, not a probability below 1")))
    }

    fn rank(&self, key: &str, value: Option<&Value>) -> Result<u32, AdapterError> {
        let rank = value.and_then(Value::as_u64).filter(|rank| (1..=MAX_RANK).contains(rank));
        rank.map(|rank| rank as u32).ok_or_else(|| config(format!("{key} is not a rank of at least 1")))
    }

    fn alpha(&self, key: &str, value: Option<&Value>) -> Result<f64, AdapterError> {
        let alpha = value.and_then(Value::as_f64).filter(|alpha| alpha.is_finite());
        alpha.ok_or_else(|| config(format!("{key} is not a finite number")))
    }

    fn rule(&self, key: &str) -> Result<Option<TargetRule>, AdapterError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(all)) if all.eq_ignore_ascii_case(targets::ALL_LINEAR) => {
                Ok(Some(TargetRule::AllLinear))
            }
            Some(Value::String(pattern)) => Ok(Some(TargetRule::Pattern(pattern.clone()))),
            Some(_) => Ok(Some(self.names(key)?).filter(|names| !names.is_empty()).map(TargetRule::Names)),
        }
    }

    /// One name, or a list of them.
    fn names(&self, key: &str) -> Result<Vec<String>, AdapterError> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::String(name)) => Ok(vec![name.clone()]),
            Some(Value::Array(names)) => {
                let names: Option<Vec<String>> =
                    names.iter().map(|n| n.as_str().map(str::to_owned)).collect();
                names.ok_or_else(|| config(format!("{key} has an entry that is no text")))
            }
            Some(_) => Err(config(format!("{key} is neither text nor a list"))),
        }
    }

    fn layers(&self) -> Result<Vec<u32>, AdapterError> {
        let items = match self.get("layers_to_transform") {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        let layer = |item: &Value| item.as_u64().and_then(|layer| u32::try_from(layer).ok());
        let layers: Option<Vec<u32>> = items.iter().map(layer).collect();
        layers.ok_or_else(|| config("layers_to_transform has an entry that is no layer's index".to_owned()))
    }

    fn pattern<T>(
        &self,
        key: &str,
        value_of: impl Fn(&str, &Value) -> Result<T, AdapterError>,
    ) -> Result<Vec<(String, T)>, AdapterError> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Object(entries)) => entries
                .iter()
                .map(|(pattern, value)| Ok((pattern.clone(), value_of(&format!("{key}.{pattern}"), value)?)))
                .collect(),
            Some(_) => Err(config(format!("{key} is not an object"))),
        }
    }
}
