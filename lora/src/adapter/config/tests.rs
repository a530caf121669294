//! adapter_config.json of every form: written, read again, refused.

use lorafleet_spec::job::{AdapterSpec, Init, Method, Task};
use lorafleet_spec::targets::TargetRule;
use serde_json::{Value, json};

use super::AdapterConfig;
use crate::params::Layout;

fn layout() -> Layout {
    let mut layout = Layout::new();
    layout.push("model.layers.0.self_attn.v_proj", 3, 2, 2, 1.0);
    layout.push("model.layers.0.self_attn.q_proj", 3, 2, 2, 1.0);
    layout.push("model.layers.1.self_attn.q_proj", 3, 2, 2, 1.0);
    layout
}

fn config() -> AdapterConfig {
    let adapter = AdapterSpec {
        method: Method::Dora,
        init: Init::Gaussian,
        rank: 4,
        alpha: 8.0,
        targets: TargetRule::Names(vec!["v_proj".into(), "q_proj".into()]),
        exclude: Some(TargetRule::Pattern(r".*\.3\..*".into())),
        layers: vec![1, 3],
        rank_pattern: vec![("q_proj".into(), 2), (r"layers\.1\..*v_proj".into(), 8)],
        alpha_pattern: vec![("q_proj".into(), 2.5)],
        rslora: true,
        dropout: 0.05,
        layers_pattern: vec!["layers".into()],
        modules_to_save: vec!["classifier".into(), "score".into()],
        start: None,
    };
    AdapterConfig {
        base_model: Some("./base".into()),
        adapter,
        task: Task::Classification,
        fan_in_fan_out: true,
    }
}

#[test]
fn what_is_written_is_read_again() {
    let config = config();
    let json = config.to_json(&layout());
    assert_eq!(AdapterConfig::parse(json.as_bytes()).unwrap(), config);
    assert!(json.contains("\"lora_alpha\": 8,"), "{json}");
    assert!(json.contains("\"q_proj\": 2.5"), "{json}");
    assert!(json.contains("\"layers_pattern\": \"layers\""), "{json}");
    assert!(json.contains("\"task_type\": \"SEQ_CLS\""), "{json}");
}

#[test]
fn a_base_of_the_hub_is_written_as_name_and_revision() {
    let mut config = config();
    config.base_model = Some("org/model@c0ffee".into());
    let text = config.to_json(&layout());
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&json["base_model_name_or_path"], &json["revision"]),
        (&json!("org/model"), &json!("c0ffee"))
    );
    assert_eq!(AdapterConfig::parse(text.as_bytes()).unwrap(), config);
}

#[test]
fn all_linear_is_written_as_names() {
    let mut config = config();
    config.adapter.targets = TargetRule::AllLinear;
    config.base_model = None;
    let json: Value = serde_json::from_str(&config.to_json(&layout())).unwrap();
    assert_eq!(json["target_modules"], json!(["q_proj", "v_proj"]));
    assert_eq!(json["base_model_name_or_path"], Value::Null);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let with = |key: &str, value: &str| {
        format!(
            r#"{{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"], "{key}": {value}}}"#
        )
    };
    for (json, word) in [
        (r#"{"peft_type": "IA3"}"#.to_owned(), "IA3"),
        (with("use_qalora", "true"), "use_qalora"),
        (with("bias", "\"all\""), "bias"),
        (with("lora_dropout", "1.5"), "lora_dropout is 1.5"),
        (with("task_type", "\"SEQ_2_SEQ_LM\""), "SEQ_2_SEQ_LM"),
        (with("init_lora_weights", "\"pissa_niter_4\""), "path_initial_model_for_weight_conversion"),
        (with("modules_to_save", "[1]"), "modules_to_save has an entry"),
        (r#"{"peft_type": "LORA", "r": 0, "lora_alpha": 8, "target_modules": ["q"]}"#.to_owned(), "r is not"),
        (r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8}"#.to_owned(), "target_modules"),
        ("[]".to_owned(), "not a JSON object"),
        ("{".to_owned(), "not JSON"),
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
    assert!(!config.adapter.rslora && !config.subtracts_start());
    assert_eq!((config.task, config.adapter.method), (Task::CausalLm, Method::Lora));
}

#[test]
fn a_start_written_out_doubles_ranks_and_keeps_scales() {
    for rslora in [false, true] {
        let mut config = config();
        config.adapter.init = Init::Pissa;
        config.adapter.rslora = rslora;
        let doubled = config.doubled();
        assert_eq!(doubled.adapter.rank, 8);
        assert_eq!(doubled.adapter.rank_pattern[0].1, 4);
        assert!(config.subtracts_start() && !doubled.subtracts_start());
        let scale = |alpha: f64, rank: u32| {
            let rank = f64::from(rank);
            alpha / if rslora { rank.sqrt() } else { rank }
        };
        let (one, two) = (scale(config.adapter.alpha, 4), scale(doubled.adapter.alpha, 8));
        assert!((one - two).abs() < 1e-15 * one);
        let (one, two) =
            (scale(config.adapter.alpha_pattern[0].1, 2), scale(doubled.adapter.alpha_pattern[0].1, 4));
        assert!((one - two).abs() < 1e-15 * one);
    }
}
