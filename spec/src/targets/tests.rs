//! Targets chosen by PEFT's rules.

use std::{collections::BTreeMap, fs, path::Path};

use proptest::prelude::*;

use super::*;
use crate::{
    base::Head,
    job::{Init, Job, Method},
};

fn example() -> BaseShape {
    BaseShape::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/base"), Head::LanguageModel)
        .unwrap()
}

/// An adapter as a job file's section says it.
fn adapter(section: &str) -> AdapterSpec {
    let text = format!("base: b\ndata: {{train: t}}\nadapter: {{{section}}}");
    Job::try_from(&crate::parse_yaml(&text).unwrap()).unwrap().adapter
}

fn resolved(section: &str) -> Vec<Target> {
    resolve(&adapter(section), &example()).unwrap()
}

fn error(section: &str) -> String {
    let errors = resolve(&adapter(section), &example()).unwrap_err();
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn modules(targets: &[Target]) -> Vec<&str> {
    targets.iter().map(|target| target.module.as_str()).collect()
}

#[test]
fn all_linear_is_all_but_the_head_in_the_order_of_the_modules() {
    let targets = resolved("rank: 8, alpha: 16");
    assert_eq!(targets.len(), 42);
    assert_eq!(
        modules(&targets[..8]),
        [
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.self_attn.k_proj",
            "model.layers.0.self_attn.v_proj",
            "model.layers.0.self_attn.o_proj",
            "model.layers.0.mlp.gate_proj",
            "model.layers.0.mlp.up_proj",
            "model.layers.0.mlp.down_proj",
            "model.layers.1.self_attn.q_proj",
        ]
    );
    assert!(targets.iter().all(|target| target.scale == 2.0 && target.rank == 8));
    // rank 16 on this base: 6 layers of (4·256 + 2·(256+128) + 3·(256+704) …) × 16
    let parameters: u64 = resolved("rank: 16").iter().map(Target::parameters).sum();
    assert_eq!(parameters, 6 * 16 * (512 + 384 + 384 + 512 + 3 * 960));
}

#[test]
fn names_match_whole_parts_from_the_end() {
    assert_eq!(resolved("targets: [q_proj, v_proj]").len(), 12);
    assert_eq!(resolved("targets: q_proj").len(), 6);
    assert_eq!(resolved("targets: self_attn.q_proj").len(), 6);
    assert_eq!(modules(&resolved("targets: model.layers.2.mlp.up_proj")), ["model.layers.2.mlp.up_proj"]);
    assert!(error("targets: proj").contains("\"proj\" matches no linear layer"));
}

#[test]
fn a_regular_expression_matches_whole_names() {
    assert_eq!(resolved(r"targets: 'model\.layers\.[01]\.self_attn\.(q|v)_proj'").len(), 4);
    assert_eq!(resolved(r"targets: '.*\.(?!q_proj|lm_head)\w+_proj'").len(), 36);
    assert!(
        error(r"targets: 'self_attn\.(q|v)_proj'").contains("matches no layer; there are q_proj, k_proj")
    );
    assert!(error("targets: '.*'").contains("matches the output head lm_head, which cannot be trained yet"));
    assert_eq!(resolved("targets: '.*', exclude: lm_head").len(), 42);
    assert!(error(r"targets: '(.*)(.*)(.*)(.*)(.*)(.*)\1\2\3\4\5\6!'").contains("too costly"));
}

#[test]
fn exclusions_and_layers() {
    assert_eq!(resolved("exclude: [down_proj, model.layers.0.mlp.up_proj]").len(), 42 - 7);
    assert_eq!(resolved(r"exclude: 'model\.layers\.0\..*'").len(), 35);
    let chosen = resolved("targets: [q_proj, o_proj], layers: [1, 3]");
    assert_eq!(
        modules(&chosen),
        [
            "model.layers.1.self_attn.q_proj",
            "model.layers.1.self_attn.o_proj",
            "model.layers.3.self_attn.q_proj",
            "model.layers.3.self_attn.o_proj",
        ]
    );
    assert_eq!(resolved("layers: 5").len(), 7);
    // PEFT takes a module that is named whole whatever the layers are.
    assert_eq!(resolved("targets: [model.layers.0.mlp.up_proj, q_proj], layers: [1]").len(), 2);
    assert!(error("layers: [6]").contains("adapter.layers: has 6; the base's layers are 0 to 5"));
    assert!(error("targets: q_proj, exclude: q_proj").contains("leaves nothing to train"));
}

#[test]
fn ranks_and_alphas_by_pattern() {
    let targets = resolved(
        r"rank: 4, alpha: 8, rank_pattern: {down_proj: 6, 'layers\.1\..*v_proj': 8, q_proj: 2}, alpha_pattern: {down_proj: 24, q_proj: 2}",
    );
    let at = |module: &str| {
        let target = targets.iter().find(|target| target.module == module).unwrap();
        (target.rank, target.alpha, target.scale)
    };
    assert_eq!(at("model.layers.0.mlp.down_proj"), (6, 24.0, 4.0));
    assert_eq!(at("model.layers.0.self_attn.q_proj"), (2, 2.0, 1.0));
    assert_eq!(at("model.layers.1.self_attn.v_proj"), (8, 8.0, 1.0));
    assert_eq!(at("model.layers.2.self_attn.v_proj"), (4, 8.0, 2.0));
    // The first pattern that matches counts; a pattern matches from a dot on.
    let targets = resolved("rank_pattern: {q_proj: 3, self_attn.q_proj: 5, proj: 7}");
    assert!(targets.iter().all(|t| t.rank == if t.module.ends_with("q_proj") { 3 } else { 16 }));
    assert_eq!(resolved("rank: 16, alpha: 16, rslora: true")[0].scale, 4.0);
}

#[test]
fn what_does_not_fit_is_told_at_once() {
    let text = error("targets: [q_prj, k_proj, fc], layers: [9]");
    assert!(
        text.contains("\"q_prj\", \"fc\" match no linear layer; there are q_proj, k_proj, v_proj, o_proj"),
        "{text}"
    );
    assert!(text.contains("adapter.layers: has 9"), "{text}");
    let text = error("rank: 129, targets: [q_proj, k_proj]");
    let wanted =
        "is 129, larger than the smaller side of model.layers.0.self_attn.k_proj (128); and 5 more like this";
    assert!(text.contains(&format!("adapter.rank: {wanted}")), "{text}");
    assert_eq!(text.lines().count(), 1);
    let text = error("rank_pattern: {down_proj: 1000}");
    assert!(text.contains("adapter.rank_pattern.down_proj: is 1000"), "{text}");
    assert_eq!(resolved("rank: 128, targets: k_proj").len(), 6);
}

/// The cases under LORAFLEET_PARITY_CASES whose base this crate knows: what PEFT adapted is what we would.
#[test]
fn the_environment_s_parity_cases_have_the_same_layers_and_ranks() {
    let Some(cases) = std::env::var_os("LORAFLEET_PARITY_CASES") else { return };
    let mut compared = 0;
    for case in fs::read_dir(cases).unwrap() {
        let case = case.unwrap().path();
        let config = fs::read_to_string(case.join("adapter/adapter_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let Ok(shape) = BaseShape::read(&case.join("base"), Head::LanguageModel) else { continue };
        if config["peft_type"] != "LORA" {
            continue;
        }
        let targets = resolve(&from_peft(&config), &shape).unwrap();
        let ours: BTreeMap<_, _> =
            targets.iter().map(|t| (t.module.clone(), [t.rank, t.in_features])).collect();
        assert_eq!(ours, peft_modules(&case.join("adapter/adapter_model.safetensors")), "{}", case.display());
        compared += 1;
    }
    assert!(compared > 0, "no case was compared");
}

/// The modules of a PEFT file, with the shape of each A.
fn peft_modules(path: &Path) -> BTreeMap<String, [usize; 2]> {
    let file = crate::base::read_tensor_file(path).unwrap();
    let header: BTreeMap<String, serde_json::Value> = serde_json::from_str(&file.header).unwrap();
    header
        .iter()
        .filter_map(|(name, entry)| {
            let module = name.strip_prefix("base_model.model.")?.strip_suffix(".lora_A.weight")?;
            let shape: [usize; 2] = serde_json::from_value(entry["shape"].clone()).unwrap();
            Some((module.to_owned(), shape))
        })
        .collect()
}

fn from_peft(config: &serde_json::Value) -> AdapterSpec {
    let rule = |field: &str| match &config[field] {
        serde_json::Value::String(pattern) => Some(TargetRule::Pattern(pattern.clone())),
        serde_json::Value::Array(names) => {
            Some(TargetRule::Names(names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()))
        }
        _ => None,
    };
    let patterns = |field: &str| -> Vec<(String, f64)> {
        let object = config[field].as_object().cloned().unwrap_or_default();
        object.iter().map(|(pattern, value)| (pattern.clone(), value.as_f64().unwrap())).collect()
    };
    AdapterSpec {
        method: Method::Lora,
        init: Init::Kaiming,
        dropout: 0.0,
        layers_pattern: Vec::new(),
        modules_to_save: Vec::new(),
        start: None,
        rank: config["r"].as_u64().unwrap() as u32,
        alpha: config["lora_alpha"].as_f64().unwrap(),
        targets: rule("target_modules").unwrap(),
        exclude: rule("exclude_modules"),
        layers: serde_json::from_value(config["layers_to_transform"].clone()).unwrap_or_default(),
        rank_pattern: patterns("rank_pattern")
            .into_iter()
            .map(|(pattern, rank)| (pattern, rank as u32))
            .collect(),
        alpha_pattern: patterns("alpha_pattern"),
        rslora: config["use_rslora"].as_bool().unwrap(),
    }
}

proptest! {
    #[test]
    fn chosen_layers_are_the_named_ones_in_order(mask in 1u8..128, layer in 0u32..6) {
        const NAMES: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        let names: Vec<_> = (0..7).filter(|i| mask >> i & 1 == 1).map(|i| NAMES[i]).collect();
        let targets = resolved(&format!("targets: [{}], layers: [{layer}]", names.join(", ")));
        let found: Vec<_> = targets.iter().map(|t| t.module.rsplit('.').next().unwrap()).collect();
        prop_assert_eq!(found, names);
    }
}
