//! `adapter_config.json` ⇄ the adapter's specification: the keys of PEFT's LoraConfig, and only what can be computed.

mod read;
#[cfg(test)]
mod tests;
mod write;

use lorafleet_spec::base::BaseShape;
use lorafleet_spec::job::{AdapterSpec, Init, Job, Task};
use lorafleet_spec::targets;
use serde_json::{Value, json};

use super::{AdapterError, layout};
use crate::params::Layout;

/// Release of PEFT whose configuration keys are written.
const PEFT_VERSION: &str = "0.21.2";

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
    ("kasa_config", Unset::Null),
    ("layer_replication", Unset::Null),
    ("loftq_config", Unset::Empty),
    ("lora_bias", Unset::False),
    ("lora_ga_config", Unset::Null),
    ("megatron_config", Unset::Null),
    ("monteclora_config", Unset::Null),
    ("target_parameters", Unset::Null),
    ("trainable_token_indices", Unset::Null),
    ("use_bdlora", Unset::Null),
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
    /// Form, rank, alpha, targets, patterns, modules to save.
    pub adapter: AdapterSpec,
    /// What it was trained for: which class of model PEFT loads it into.
    pub task: Task,
    /// PEFT's word for layers whose weight is stored `[in, out]` (gpt2).
    pub fan_in_fan_out: bool,
}

impl AdapterConfig {
    /// The configuration of a job's adapter on a base of this shape, and where its tensors lie.
    ///
    /// A classifier's modules to save include PEFT's own (`classifier`, `score`) and whatever of the head the base does
    /// not have: it is new, so it is trained.
    ///
    /// # Errors
    /// When the adapter does not fit the base, with all reasons.
    pub fn of_job(job: &Job, shape: &BaseShape) -> Result<(Self, Layout), AdapterError> {
        let base_model = Some(job.base.source.clone()).filter(|source| !source.is_empty());
        let layout = layout::of_job(&job.adapter, shape)?;
        let mut adapter = job.adapter.clone();
        if let Ok(saved) = targets::saved(&adapter, shape) {
            adapter.modules_to_save = saved.entries;
        }
        let fan_in_fan_out = shape.linears.iter().any(|linear| linear.conv1d);
        Ok((Self { base_model, adapter, task: job.task, fan_in_fan_out }, layout))
    }

    /// Where the tensors of an adapter that was read lie, for a base of this shape.
    ///
    /// # Errors
    /// When the adapter does not fit the base, with all reasons.
    pub fn layout(&self, shape: &BaseShape) -> Result<Layout, AdapterError> {
        layout::of_made(&self.adapter, shape)
    }

    /// Whether the adapter starts as a part of the base's weights, which is then subtracted (PiSSA, OLoRA).
    pub fn subtracts_start(&self) -> bool {
        matches!(self.adapter.init, Init::Pissa | Init::Olora)
    }

    /// The configuration of the same adapter with its start written out as further ranks, so that nothing is subtracted:
    /// twice every rank, and the alphas that keep every scale.
    pub(super) fn doubled(&self) -> Self {
        let mut adapter = self.adapter.clone();
        let rslora = adapter.rslora;
        let alpha = |alpha: f64| if rslora { alpha * std::f64::consts::SQRT_2 } else { 2.0 * alpha };
        adapter.rank *= 2;
        adapter.rank_pattern.iter_mut().for_each(|(_, rank)| *rank *= 2);
        adapter.alpha = alpha(adapter.alpha);
        adapter.alpha_pattern.iter_mut().for_each(|(_, value)| *value = alpha(*value));
        adapter.init = Init::Kaiming;
        Self { adapter, ..self.clone() }
    }
}

fn config(message: String) -> AdapterError {
    AdapterError::Config(message)
}
