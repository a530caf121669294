//! `adapter_config.json` ⇄ the adapter's specification: the keys of PEFT's LoraConfig, and only what can be computed.

use std::collections::BTreeSet;

use lorafleet_spec::base::BaseShape;
use lorafleet_spec::job::{AdapterSpec, Init, Method};
use lorafleet_spec::targets::{self, Target, TargetRule};
use serde_json::{Map, Value, json};

use super::AdapterError;
use crate::params::Layout;

/// Release of PEFT whose configuration keys are written.
const PEFT_VERSION: &str = "0.21.2";

/// Largest rank that is read; a file with more is damaged.
const MAX_RANK: u64 = 1 << 20;

/// Keys of PEFT's LoraConfig that change what an adapter computes, or add files or tensors to it, in ways that are not
/// supported: they must be unset, and are written unset.
const UNSET: &[(&str, Unset)] = &[
    ("alora_invocation_tokens", Unset::Null),
    ("arrow_config", Unset::Null),
    ("auto_mapping", Unset::Null),
    ("bias", Unset::Text("none")),
    ("corda_config", Unset::Null),
    ("ensure_weight_tying", Unset::False),
    ("eva_config", Unset::Null),
    ("fan_in_fan_out", Unset::False),
    ("kasa_config", Unset::Null),
    ("layer_replication", Unset::Null),
    ("layers_pattern", Unset::Null),
    ("loftq_config", Unset::Empty),
    ("lora_bias", Unset::False),
    ("lora_ga_config", Unset::Null),
    ("megatron_config", Unset::Null),
    ("modules_to_save", Unset::Null),
    ("monteclora_config", Unset::Null),
    ("target_parameters", Unset::Null),
    ("trainable_token_indices", Unset::Null),
    ("use_bdlora", Unset::Null),
    ("use_dora", Unset::False),
    ("use_qalora", Unset::False),
    ("velora_config", Unset::Null),
];

/// Unset keys that say how an adapter was started: a trained one no longer depends on them.
const ONLY_INITIAL: &[&str] =
    &["auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "lora_ga_config"];

#[derive(Clone, Copy)]
enum Unset {
    Null,
    False,
    Empty,
    Text(&'static str),
}

impl Unset {
    fn value(self) -> Value {
        match self {
            Unset::Null => Value::Null,
            Unset::False => Value::Bool(false),
            Unset::Empty => json!({}),
            Unset::Text(text) => json!(text),
        }
    }
}

/// What `adapter_config.json` says of an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// The base that it was trained on, for people and for PEFT's loader.
    pub base_model: Option<String>,
    /// Rank, alpha, targets, patterns.
    pub adapter: AdapterSpec,
}

impl AdapterConfig {
    /// Where the adapter's matrices lie, for a base of this shape.
    ///
    /// # Errors
    /// When the adapter does not fit the base, with all reasons.
    pub fn layout(&self, shape: &BaseShape) -> Result<Layout, AdapterError> {
        let targets = targets::resolve(&self.adapter, shape).map_err(|errors| {
            let reasons: Vec<String> = errors.iter().map(ToString::to_string).collect();
            AdapterError::Targets(reasons.join("; "))
        })?;
        let mut layout = Layout::new();
        for target in &targets {
            let Target { module, in_features, out_features, rank, .. } = target;
            layout.push(module, *in_features, *out_features, *rank, target.scale as f32);
        }
        Ok(layout)
    }

    /// The text of `adapter_config.json`: PEFT's keys, sorted as PEFT sorts them.
    ///
    /// `all-linear` becomes the last parts of the targeted modules' names, as PEFT writes it.
    pub fn to_json(&self, layout: &Layout) -> String {
        let spec = &self.adapter;
        let mut entries: Vec<(&str, Value)> =
            UNSET.iter().map(|(key, unset)| (*key, unset.value())).collect();
        let layers = if spec.layers.is_empty() { Value::Null } else { json!(spec.layers) };
        let ranks: Map<String, Value> =
            spec.rank_pattern.iter().map(|(p, rank)| (p.clone(), json!(rank))).collect();
        let alphas = spec.alpha_pattern.iter().map(|(p, alpha)| (p.clone(), number(*alpha))).collect();
        let mut set = |key, value| entries.push((key, value));
        set("alpha_pattern", Value::Object(alphas));
        set("base_model_name_or_path", json!(self.base_model));
        set("exclude_modules", spec.exclude.as_ref().map_or(Value::Null, |rule| rule_value(rule, layout)));
        set("inference_mode", json!(true));
        set("init_lora_weights", json!(true));
        set("layers_to_transform", layers);
        set("lora_alpha", number(spec.alpha));
        set("lora_dropout", json!(0.0));
        set("megatron_core", json!("megatron.core"));
        set("peft_type", json!("LORA"));
        set("peft_version", json!(PEFT_VERSION));
        set("qalora_group_size", json!(16));
        set("r", json!(spec.rank));
        set("rank_pattern", Value::Object(ranks));
        set("revision", Value::Null);
        set("target_modules", rule_value(&spec.targets, layout));
        set("task_type", json!("CAUSAL_LM"));
        set("use_rslora", json!(spec.rslora));
        entries.sort_by_key(|(key, _)| *key);
        let object: Map<String, Value> =
            entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        format!("{:#}", Value::Object(object))
    }

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
            method: Method::Lora,
            init: Init::Kaiming,
            dropout: 0.0,
            layers_pattern: Vec::new(),
            modules_to_save: Vec::new(),
            start: None,
            rank,
            alpha: fields.alpha("lora_alpha", object.get("lora_alpha"))?,
            targets: targets.ok_or_else(|| config("target_modules is missing".to_owned()))?,
            exclude: fields.rule("exclude_modules")?,
            layers: fields.layers()?,
            rank_pattern: fields.pattern("rank_pattern", |key, value| fields.rank(key, Some(value)))?,
            alpha_pattern: fields.pattern("alpha_pattern", |key, value| fields.alpha(key, Some(value)))?,
            rslora: fields.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        };
        let base_model = fields.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned);
        Ok(Self { base_model, adapter })
    }
}

fn config(message: String) -> AdapterError {
    AdapterError::Config(message)
}

/// A whole number without a point, as PEFT writes an alpha that was given as an int.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

fn rule_value(rule: &TargetRule, layout: &Layout) -> Value {
    match rule {
        TargetRule::Names(names) => json!(names),
        TargetRule::Pattern(pattern) => json!(pattern),
        TargetRule::AllLinear => {
            let last = |module: &str| module.rsplit('.').next().unwrap_or(module).to_owned();
            let names: BTreeSet<String> = layout.modules().iter().map(|m| last(&m.module)).collect();
            json!(names)
        }
    }
}

/// The object's fields, with null as good as missing.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
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
            Some(Value::Array(names)) => {
                let names: Option<Vec<String>> =
                    names.iter().map(|n| n.as_str().map(str::to_owned)).collect();
                let names = names.ok_or_else(|| config(format!("{key} has an entry that is no text")))?;
                Ok((!names.is_empty()).then_some(TargetRule::Names(names)))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let mut layout = Layout::new();
        layout.push("model.layers.0.self_attn.v_proj", 3, 2, 2, 1.0);
        layout.push("model.layers.0.self_attn.q_proj", 3, 2, 2, 1.0);
        layout.push("model.layers.1.self_attn.q_proj", 3, 2, 2, 1.0);
        layout
    }

    fn spec() -> AdapterSpec {
        AdapterSpec {
            method: Method::Lora,
            init: Init::Kaiming,
            dropout: 0.0,
            layers_pattern: Vec::new(),
            modules_to_save: Vec::new(),
            start: None,
            rank: 4,
            alpha: 8.0,
            targets: TargetRule::Names(vec!["v_proj".into(), "q_proj".into()]),
            exclude: Some(TargetRule::Pattern(r".*\.3\..*".into())),
            layers: vec![1, 3],
            rank_pattern: vec![("q_proj".into(), 2), (r"layers\.1\..*v_proj".into(), 8)],
            alpha_pattern: vec![("q_proj".into(), 2.5)],
            rslora: true,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let config = AdapterConfig { base_model: Some("./base".into()), adapter: spec() };
        let json = config.to_json(&layout());
        assert_eq!(AdapterConfig::parse(json.as_bytes()).unwrap(), config);
        assert!(json.contains("\"lora_alpha\": 8,"), "{json}");
        assert!(json.contains("\"q_proj\": 2.5"), "{json}");
    }

    #[test]
    fn all_linear_is_written_as_names() {
        let config = AdapterConfig {
            base_model: None,
            adapter: AdapterSpec { targets: TargetRule::AllLinear, ..spec() },
        };
        let json: Value = serde_json::from_str(&config.to_json(&layout())).unwrap();
        assert_eq!(json["target_modules"], json!(["q_proj", "v_proj"]));
        assert_eq!(json["base_model_name_or_path"], Value::Null);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (json, word) in [
            (r#"{"peft_type": "IA3"}"#, "IA3"),
            (
                r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"], "use_dora": true}"#,
                "use_dora",
            ),
            (
                r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"], "bias": "all"}"#,
                "bias",
            ),
            (r#"{"peft_type": "LORA", "r": 0, "lora_alpha": 8, "target_modules": ["q"]}"#, "r is not"),
            (r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8}"#, "target_modules"),
            ("[]", "not a JSON object"),
            ("{", "not JSON"),
        ] {
            let message = AdapterConfig::parse(json.as_bytes()).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn an_old_file_with_few_keys_is_read() {
        let json = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear",
                       "layers_to_transform": 2, "modules_to_save": [], "bias": "none"}"#;
        let config = AdapterConfig::parse(json.as_bytes()).unwrap();
        assert_eq!(config.adapter.targets, TargetRule::AllLinear);
        assert_eq!(config.adapter.layers, [2]);
        assert!(!config.adapter.rslora);
    }
}
