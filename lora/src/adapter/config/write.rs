//! Writes `adapter_config.json` as PEFT does.

use std::collections::BTreeSet;

use lorafleet_spec::base::HubId;
use lorafleet_spec::job::{Init, Method, Task};
use lorafleet_spec::targets::TargetRule;
use serde_json::{Map, Value, json};

use super::{AdapterConfig, PEFT_VERSION, UNSET};
use crate::params::Layout;

impl AdapterConfig {
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
        // A hub id at a commit is two fields there.
        let hub = self.base_model.as_deref().and_then(HubId::parse).filter(|hub| hub.revision.is_some());
        let base = hub.as_ref().map(|hub| &hub.id).or(self.base_model.as_ref());
        set("base_model_name_or_path", json!(base));
        set("exclude_modules", spec.exclude.as_ref().map_or(Value::Null, |rule| rule_value(rule, layout)));
        set("fan_in_fan_out", json!(self.fan_in_fan_out));
        set("inference_mode", json!(true));
        set("init_lora_weights", init(spec.init));
        set("layers_pattern", names(&spec.layers_pattern));
        set("layers_to_transform", layers);
        set("lora_alpha", number(spec.alpha));
        set("lora_dropout", json!(spec.dropout));
        set("megatron_core", json!("megatron.core"));
        let saved = &spec.modules_to_save;
        set("modules_to_save", if saved.is_empty() { Value::Null } else { json!(saved) });
        set("peft_type", json!("LORA"));
        set("peft_version", json!(PEFT_VERSION));
        set("qalora_group_size", json!(16));
        set("r", json!(spec.rank));
        set("rank_pattern", Value::Object(ranks));
        set("revision", json!(hub.as_ref().map(HubId::revision)));
        set("target_modules", rule_value(&spec.targets, layout));
        set("task_type", json!(task_type(self.task)));
        set("use_dora", json!(spec.method == Method::Dora));
        set("use_rslora", json!(spec.rslora));
        entries.sort_by_key(|(key, _)| *key);
        let object: Map<String, Value> =
            entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        format!("{:#}", Value::Object(object))
    }
}

/// PEFT's word for a task.
pub(super) fn task_type(task: Task) -> &'static str {
    match task {
        Task::CausalLm => "CAUSAL_LM",
        Task::Classification => "SEQ_CLS",
    }
}

fn init(init: Init) -> Value {
    match init {
        Init::Kaiming => json!(true),
        Init::Gaussian => json!("gaussian"),
        Init::Pissa => json!("pissa"),
        Init::Olora => json!("olora"),
    }
}

/// One name as text, several as a list: PEFT takes both.
fn names(names: &[String]) -> Value {
    match names {
        [] => Value::Null,
        [one] => json!(one),
        more => json!(more),
    }
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
