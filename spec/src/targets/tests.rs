//! Targets chosen by PEFT's rules.

use std::{collections::BTreeMap, fs, path::Path};

use proptest::prelude::*;

use super::*;
use crate::base::{Head, tests::families::tiny};

fn example() -> BaseShape {
    BaseShape::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/base"), Head::LanguageModel)
        .unwrap()
}

/// An adapter as a job file's section says it.
fn adapter(section: &str) -> AdapterSpec {
    let text = format!("base: b\ndata: {{train: t}}\nadapter: {{{section}}}");
    let (_, parts, errors) = crate::job::read_lenient(&text);
    parts.adapter.unwrap_or_else(|| panic!("{section}: {errors:?}"))
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
    assert_eq!(resolved("targets: '.*', exclude: [lm_head, embed_tokens]").len(), 42);
    assert_eq!(resolved("targets: '.*'").len(), 44);
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
    let targets = resolved("rank_pattern: {q_proj: 3, self_attn.q_proj: 5}");
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

const CLASSIFIER: Head = Head::Classifier { labels: 3 };

/// What a section's adapter and whole tensors are on a family's tiny model, or what is wrong.
fn on(shape: &BaseShape, section: &str) -> Result<(Vec<String>, Vec<String>), String> {
    let adapter = adapter(section);
    let text =
        |errors: Vec<FieldError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let targets = resolve(&adapter, shape).map_err(text)?;
    let saved = saved(&adapter, shape).map_err(text)?;
    Ok((
        targets.into_iter().map(|target| target.module).collect(),
        saved.tensors.into_iter().map(|(name, _)| name).collect(),
    ))
}

#[test]
fn a_classifier_is_always_trained_whole_and_never_adapted() {
    let roberta = tiny("roberta", "classifier", CLASSIFIER);
    let (targets, saved) = on(&roberta, "rank: 2, targets: [query, dense], exclude: 'classifier.*'").unwrap();
    let layer = "roberta.encoder.layer.0";
    assert_eq!(
        targets,
        ["attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"]
            .map(|name| format!("{layer}.{name}"))
    );
    let head = [
        "classifier.dense.weight",
        "classifier.dense.bias",
        "classifier.out_proj.weight",
        "classifier.out_proj.bias",
    ];
    assert_eq!(saved, head);
    // Without the exclusion it is the same: what is trained whole gets no adapter.
    assert_eq!(on(&roberta, "rank: 2, targets: [query, dense]").unwrap(), (targets, saved));
    assert_eq!(on(&roberta, "rank: 2").unwrap().0.len(), 6);
    let entries = super::saved(&adapter("rank: 2"), &roberta).unwrap().entries;
    assert_eq!(entries, ["classifier", "score"]);
    let error = on(&roberta, "rank: 2, targets: out_proj").unwrap_err();
    assert!(error.contains("\"out_proj\" matches only what is trained whole (classifier, score)"), "{error}");
    // PEFT compares the ends of names, so that `classifier` means `pre_classifier` too.
    let distilbert = tiny("distilbert", "classifier", CLASSIFIER);
    let (targets, saved) = on(&distilbert, "rank: 2").unwrap();
    assert_eq!((targets.len(), saved.len()), (6, 4));
    let llama = tiny("llama", "language_model", CLASSIFIER);
    assert_eq!(on(&llama, "rank: 2").unwrap().1, ["score.weight"]);
}

#[test]
fn a_pretrained_pooler_is_linear_and_a_fresh_one_is_trained_whole() {
    let bert = tiny("bert", "classifier", CLASSIFIER);
    let (targets, saved) = on(&bert, "rank: 2").unwrap();
    assert_eq!(targets.last().unwrap(), "bert.pooler.dense");
    assert_eq!(saved, ["classifier.weight", "classifier.bias"]);
    let mut masked = bert;
    masked.fresh = vec!["bert.pooler.dense.weight".into(), "bert.pooler.dense.bias".into()];
    let (targets, saved) = on(&masked, "rank: 2").unwrap();
    assert_eq!((targets.len(), saved.len()), (6, 4));
    let entries = super::saved(&adapter("rank: 2"), &masked).unwrap().entries;
    assert_eq!(entries, ["classifier", "score", "bert.pooler.dense"]);
}

#[test]
fn embeddings_and_the_head_can_have_adapters() {
    let gpt2 = tiny("gpt2", "language_model", Head::LanguageModel);
    let section = adapter("rank: 2, targets: [wte, lm_head, c_attn]");
    let targets = resolve(&section, &gpt2).unwrap();
    let found: Vec<_> =
        targets.iter().map(|t| (t.module.as_str(), t.kind, t.in_features, t.out_features)).collect();
    assert_eq!(
        found,
        [
            ("transformer.wte", TargetKind::Embedding, 50, 32),
            ("transformer.h.0.attn.c_attn", TargetKind::Linear, 32, 96),
            ("lm_head", TargetKind::Linear, 32, 50),
        ]
    );
    let error = on(&gpt2, "rank: 2, targets: wpe").unwrap_err();
    assert!(error.contains("matches transformer.wpe; of embeddings only that of tokens"), "{error}");
    assert_eq!(on(&gpt2, "rank: 2").unwrap().0.len(), 4);
}

#[test]
fn modules_to_save_are_whole_tensors() {
    let llama = tiny("llama", "language_model", Head::LanguageModel);
    let (_, saved) = on(&llama, "rank: 2, modules_to_save: [lm_head, embed_tokens, model.norm]").unwrap();
    assert_eq!(saved, ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"]);
    let (targets, saved) = on(&llama, "rank: 2, modules_to_save: [mlp]").unwrap();
    assert_eq!((targets.len(), saved.len()), (4, 6));
    let error = on(&llama, "rank: 2, modules_to_save: [lm_hed]").unwrap_err();
    assert!(error.contains("adapter.modules_to_save: has \"lm_hed\", which is no module"), "{error}");
    let error = on(&llama, "rank: 2, targets: [q_proj, up_proj], modules_to_save: [mlp]").unwrap_err();
    assert!(error.contains("\"up_proj\" matches only what is trained whole (mlp)"), "{error}");
    let gpt2 = tiny("gpt2", "language_model", Head::LanguageModel);
    for tied in ["lm_head", "wte"] {
        let error = on(&gpt2, &format!("rank: 2, modules_to_save: [{tied}]")).unwrap_err();
        assert!(error.contains("the base's output head is its token embedding"), "{error}");
    }
}

#[test]
fn full_fine_tuning_trains_every_tensor() {
    let llama = tiny("llama", "language_model", Head::LanguageModel);
    let (targets, saved) = on(&llama, "method: full").unwrap();
    assert!(targets.is_empty() && saved.len() == llama.tensors.len());
    let parameters = super::saved(&adapter("method: full"), &llama).unwrap().parameters();
    assert_eq!(parameters, llama.parameters());
}

#[test]
fn layers_are_counted_in_a_list_of_that_name() {
    let bert = tiny("bert", "classifier", CLASSIFIER);
    let section =
        |pattern: &str| format!("rank: 2, targets: [query], layers: [0], layers_pattern: [{pattern}]");
    assert_eq!(on(&bert, &section("layer")).unwrap().0, ["bert.encoder.layer.0.attention.self.query"]);
    let error = on(&bert, &section("h, layers")).unwrap_err();
    assert!(
        error.contains(
            "adapter.layers_pattern: h, layers names no list of layers; the base's are in \"layer\""
        ),
        "{error}"
    );
}

#[test]
fn patterns_that_match_nothing_are_told() {
    assert!(
        error("rank_pattern: {lm_head: 4}")
            .contains("adapter.rank_pattern.lm_head: matches none of the modules")
    );
    assert!(error("alpha_pattern: {q_prj: 4}").contains("adapter.alpha_pattern.q_prj: matches none"));
    assert!(error("rank_pattern: {proj: 7}").contains("matches none"), "a pattern matches from a dot on");
    assert!(error("exclude: [lm_hed]").contains("adapter.exclude: \"lm_hed\" matches no linear layer"));
    assert!(error("exclude: 'classifier.*'").contains("adapter.exclude: \"classifier.*\" matches no layer"));
    // PEFT lets all of these pass.
    let made =
        adapter("rank: 300, targets: [q_proj, c_attn], exclude: 'classifier.*', rank_pattern: {lm_head: 4}");
    assert_eq!(resolve_made(&made, &example()).unwrap().len(), 6);
}

#[test]
fn dora_has_a_magnitude() {
    let plain: u64 = resolved("rank: 2, targets: k_proj").iter().map(Target::parameters).sum();
    let dora: u64 = resolved("method: dora, rank: 2, targets: k_proj").iter().map(Target::parameters).sum();
    assert_eq!(dora, plain + 6 * 128);
}

/// The cases under LORAFLEET_PARITY_CASES: what PEFT adapted and saved is what we would.
#[test]
fn the_environment_s_parity_cases_have_the_same_layers_and_ranks() {
    let Some(cases) = std::env::var_os("LORAFLEET_PARITY_CASES") else { return };
    for case in fs::read_dir(cases).unwrap() {
        let case = case.unwrap().path();
        let config = fs::read_to_string(case.join("adapter/adapter_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        if config["peft_type"] != "LORA" {
            continue;
        }
        let head = match config["task_type"].as_str().unwrap() {
            "SEQ_CLS" => Head::Classifier { labels: 5 },
            _ => Head::LanguageModel,
        };
        let shape = BaseShape::read(&case.join("base"), head).unwrap();
        let adapter = from_peft(&config);
        let mut ours: BTreeMap<_, _> = resolve_made(&adapter, &shape)
            .unwrap()
            .iter()
            .map(|t| (format!("{}.lora_A.weight", t.module), vec![t.rank, t.in_features]))
            .collect();
        ours.extend(saved(&adapter, &shape).unwrap().tensors);
        assert_eq!(ours, peft_tensors(&case.join("adapter/adapter_model.safetensors")), "{}", case.display());
    }
}

/// The shape of each A and each whole tensor in a PEFT file.
fn peft_tensors(path: &Path) -> BTreeMap<String, Vec<usize>> {
    let file = crate::base::read_tensor_file(path).unwrap();
    let header: BTreeMap<String, serde_json::Value> = serde_json::from_str(&file.header).unwrap();
    let others = ["lora_B.weight", "lora_magnitude_vector"];
    header
        .iter()
        .filter_map(|(name, entry)| {
            let name = name.strip_prefix("base_model.model.")?;
            let shape = serde_json::from_value(entry["shape"].clone()).unwrap();
            (!others.iter().any(|other| name.ends_with(other))).then(|| (name.to_owned(), shape))
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
        modules_to_save: serde_json::from_value(config["modules_to_save"].clone()).unwrap_or_default(),
        ..adapter("rank: 1")
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
