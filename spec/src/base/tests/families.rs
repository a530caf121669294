//! Every family as transformers saves it: names, sizes and settings.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;

/// One model of families.json, which families.py wrote.
#[derive(serde::Deserialize)]
struct Saved {
    family: String,
    head: String,
    config: Value,
    tensors: BTreeMap<String, Vec<usize>>,
    linears: BTreeMap<String, (usize, usize, bool)>,
}

fn saved() -> Vec<Saved> {
    serde_json::from_str(include_str!("families.json")).unwrap()
}

fn one(family: &str, head: &str) -> Saved {
    saved().into_iter().find(|saved| saved.family == family && saved.head == head).unwrap()
}

/// A safetensors header with these tensors.
fn header(tensors: &BTreeMap<String, Vec<usize>>) -> TensorFile {
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let bytes = 4 * shape.iter().product::<usize>();
        header
            .insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [at, at + bytes]}));
        at += bytes;
    }
    let header = Value::from(header).to_string();
    TensorFile { name: "model.safetensors".to_owned(), file_bytes: (8 + header.len() + at) as u64, header }
}

fn parse(saved: &Saved, head: Head) -> Result<BaseShape, BaseError> {
    BaseShape::parse(&saved.config.to_string(), &[header(&saved.tensors)], head)
}

/// The shape of a family's tiny model, as transformers saves it with that head: `none`, `classifier`, `language_model`.
pub(crate) fn tiny(family: &str, saved: &str, head: Head) -> BaseShape {
    parse(&one(family, saved), head).unwrap()
}

const CLASSIFIER: Head = Head::Classifier { labels: 3 };

#[test]
fn all_tensors_and_linear_layers_are_those_of_transformers() {
    for saved in saved() {
        let at = format!("{} {}", saved.family, saved.head);
        let head = match saved.head.as_str() {
            "language_model" => Head::LanguageModel,
            _ => CLASSIFIER,
        };
        let shape = parse(&saved, head).unwrap_or_else(|error| panic!("{at}: {error}"));
        assert_eq!(shape.family.name, saved.family);
        let mut used: Vec<_> = shape.tensors.values().map(|tensor| tensor.stored.clone()).collect();
        used.sort();
        let mut stored: Vec<_> = saved.tensors.keys().cloned().collect();
        if saved.head == "none" {
            // A bare RoBERTa has a pooler that its classifier does not use.
            stored.retain(|name| !name.starts_with("pooler") || saved.family == "bert");
            assert!(!shape.fresh.is_empty(), "{at}");
        } else {
            assert_eq!(shape.fresh, Vec::<String>::new(), "{at}");
            let linears: BTreeMap<_, _> = shape
                .linears
                .iter()
                .map(|linear| (linear.name.clone(), (linear.in_features, linear.out_features, linear.bias)))
                .collect();
            assert_eq!(linears, saved.linears, "{at}");
        }
        assert_eq!(used, stored, "{at}");
    }
}

#[test]
fn a_new_head_is_fresh() {
    let fresh = |family: &str| parse(&one(family, "none"), CLASSIFIER).unwrap().fresh;
    assert_eq!(fresh("bert"), ["classifier.weight", "classifier.bias"]);
    assert_eq!(
        fresh("roberta"),
        [
            "classifier.dense.weight",
            "classifier.dense.bias",
            "classifier.out_proj.weight",
            "classifier.out_proj.bias"
        ]
    );
    assert_eq!(
        fresh("distilbert"),
        ["pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"]
    );
    assert_eq!(fresh("qwen3"), ["score.weight"]);
    // A causal language model is classified with, its own head left out.
    let shape = parse(&one("llama", "language_model"), CLASSIFIER).unwrap();
    assert_eq!(shape.fresh, ["score.weight"]);
    assert!(!shape.tensors.contains_key("lm_head.weight"));
    // A masked language model has no pooler.
    let mut masked = one("bert", "classifier");
    masked.tensors.retain(|name, _| !name.contains("pooler") && !name.starts_with("classifier"));
    masked.config["architectures"] = json!(["BertForMaskedLM"]);
    let shape = parse(&masked, CLASSIFIER).unwrap();
    assert_eq!(shape.fresh[..2], ["bert.pooler.dense.weight", "bert.pooler.dense.bias"]);
}

#[test]
fn heads_that_do_not_fit_are_told() {
    let error = parse(&one("bert", "classifier"), Head::LanguageModel).unwrap_err().to_string();
    assert!(
        error.contains("a bert model is an encoder") && error.contains("task: classification"),
        "{error}"
    );
    let error = parse(&one("bert", "classifier"), Head::Classifier { labels: 4 }).unwrap_err().to_string();
    assert!(error.contains("classifier.weight has the shape [3, 32], not [4, 32]"), "{error}");
    let error = parse(&one("llama", "none"), Head::LanguageModel).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight [50, 32] is missing"), "{error}");
}

#[test]
fn old_names_of_layer_norms_are_read() {
    let mut saved = one("bert", "classifier");
    let rename = |name: &String| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        name.replace("LayerNorm.bias", "LayerNorm.beta")
    };
    saved.tensors = saved.tensors.iter().map(|(name, shape)| (rename(name), shape.clone())).collect();
    let shape = parse(&saved, CLASSIFIER).unwrap();
    assert_eq!(shape.tensors["bert.embeddings.LayerNorm.weight"].stored, "bert.embeddings.LayerNorm.gamma");
}

#[test]
fn a_tied_pair_may_be_stored_as_the_head() {
    let mut saved = one("gpt2", "language_model");
    let embedding = saved.tensors.remove("transformer.wte.weight").unwrap();
    saved.tensors.insert("lm_head.weight".to_owned(), embedding);
    let shape = parse(&saved, Head::LanguageModel).unwrap();
    assert_eq!(shape.tensors["transformer.wte.weight"].stored, "lm_head.weight");
}

#[test]
fn what_the_families_compute() {
    let shape = |family: &str| {
        let head =
            if one(family, "classifier").family.contains("bert") { CLASSIFIER } else { Head::LanguageModel };
        let name = if head == CLASSIFIER { "classifier" } else { "language_model" };
        parse(&one(family, name), head).unwrap()
    };
    let windows = |shape: &BaseShape| shape.layer_kinds.iter().map(|kind| kind.window).collect::<Vec<_>>();
    assert_eq!(windows(&shape("mistral")), [Some(8)]);
    assert_eq!(windows(&shape("qwen2")), [None, Some(8)]);
    assert_eq!(windows(&shape("phi3")), [None]);
    let gemma2 = shape("gemma2");
    assert_eq!(windows(&gemma2), [Some(8), None]);
    assert_eq!((gemma2.attention.softcap, gemma2.final_softcap), (Some(50.0), Some(30.0)));
    assert_eq!((gemma2.attention.scale, gemma2.embedding_scale), (1.0 / 12f64.sqrt(), 32f64.sqrt()));
    assert_eq!((gemma2.norm.kind, gemma2.placement), (NormKind::RmsPlusOne, Placement::Around));
    assert_eq!(gemma2.activation, Activation::GeluTanh);
    assert!(gemma2.tied && gemma2.gated && !gemma2.qk_norm);
    let gemma3 = shape("gemma3_text");
    assert_eq!((gemma3.attention.softcap, gemma3.final_softcap), (None, None));
    assert_eq!(
        gemma3.layer_kinds,
        [LayerKind { window: Some(8), rope: 1 }, LayerKind { window: None, rope: 0 },]
    );
    assert_eq!([gemma3.rope_at(0).unwrap().theta, gemma3.rope_at(1).unwrap().theta], [1e4, 1e6]);
    assert!(gemma3.qk_norm);
    let gpt2 = shape("gpt2");
    assert_eq!(
        (gpt2.positions.clone(), gpt2.max_positions, gpt2.mlp),
        (Positions::Learned { offset: 0 }, 64, 128)
    );
    assert!(gpt2.linears.iter().filter(|linear| linear.layer.is_some()).all(|linear| linear.conv1d));
    let bert = shape("bert");
    assert!(!bert.attention.causal && bert.embedding_norm && bert.token_types == 2 && !bert.tied);
    assert_eq!((bert.activation, bert.placement, bert.norm.eps), (Activation::Gelu, Placement::After, 1e-12));
    let roberta = shape("roberta");
    assert_eq!((roberta.positions.clone(), roberta.max_positions), (Positions::Learned { offset: 2 }, 62));
    let dense = HeadDense { role: Role::ClassifierDense, activation: HeadActivation::Relu };
    let wanted = HeadShape::Classifier { labels: 3, token: HeadToken::First, dense: Some(dense) };
    assert_eq!(shape("distilbert").head, wanted);
    assert_eq!(shape("distilbert").token_types, 0);
}

/// Reads a family's config with changes (null removes a field).
fn changed(family: &str, changes: Value) -> Result<BaseShape, BaseError> {
    let mut saved = one(family, "language_model");
    for (field, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(saved.config.as_object_mut().unwrap().remove(field)),
            value => saved.config[field] = value.clone(),
        }
    }
    parse(&saved, Head::LanguageModel)
}

#[test]
fn gemma3_in_the_older_generation() {
    let shape = changed("gemma3_text", json!({
        "rope_parameters": null, "layer_types": null, "_sliding_window_pattern": null,
        "rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 2,
    }))
    .unwrap();
    assert_eq!(
        shape.positions,
        Positions::Rope(vec![
            Rope { theta: 5e5, scaling: RopeScaling::Linear { factor: 8.0 } },
            Rope { theta: 2e4, scaling: RopeScaling::None },
        ])
    );
    assert_eq!(shape.layer_kinds[0], LayerKind { window: Some(8), rope: 1 });
    let by_default =
        changed("gemma3_text", json!({"layer_types": null, "sliding_window_pattern": null})).unwrap();
    assert!(by_default.layer_kinds.iter().all(|kind| kind.window == Some(8)), "the sixth would see all");
}

#[test]
fn every_rope_scaling() {
    let scaling = |parameters: Value| {
        let new = changed("llama", json!({"rope_parameters": parameters})).unwrap();
        let mut old = parameters.clone();
        old["type"] = old["rope_type"].take();
        let old = changed("llama", json!({"rope_parameters": null, "rope_scaling": old})).unwrap();
        assert_eq!(new.positions, old.positions);
        new.rope_at(0).unwrap().scaling
    };
    let yarn = |original_max_positions, beta_slow, attention_factor, truncate| RopeScaling::Yarn {
        factor: 4.0,
        original_max_positions,
        attention_factor,
        beta_fast: 32.0,
        beta_slow,
        mscale: None,
        mscale_all_dim: None,
        truncate,
    };
    assert_eq!(scaling(json!({"rope_type": "yarn", "factor": 4.0})), yarn(64.0, 1.0, None, true));
    assert_eq!(
        scaling(
            json!({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 16, "beta_slow": 2,
            "attention_factor": 1.5, "truncate": false})
        ),
        yarn(16.0, 2.0, Some(1.5), false)
    );
    let dynamic = RopeScaling::Dynamic { factor: 2.0, original_max_positions: 64.0 };
    assert_eq!(scaling(json!({"rope_type": "dynamic", "factor": 2.0})), dynamic);
    assert_eq!(scaling(json!({"rope_type": "linear", "factor": 2.0})), RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn what_is_not_computed_is_refused() {
    let error = |family: &str, changes: Value| changed(family, changes).unwrap_err().to_string();
    let longrope =
        json!({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}});
    assert!(error("phi3", longrope).contains("rope_type longrope is not known"));
    let partial = error("phi3", json!({"partial_rotary_factor": 0.75}));
    assert!(partial.contains("partial_rotary_factor is 0.75"), "{partial}");
    assert!(
        error("gemma3_text", json!({"use_bidirectional_attention": true}))
            .contains("use_bidirectional_attention")
    );
    assert!(
        error("gpt2", json!({"scale_attn_by_inverse_layer_idx": true})).contains("scale_attn_by_inverse")
    );
    assert!(error("gpt2", json!({"n_head": 5})).contains("n_embd (32) is no multiple of n_head (5)"));
    assert!(error("qwen2", json!({"layer_types": ["full_attention"]})).contains("layer_types must name"));
}

#[test]
fn silence_means_the_class_s_default() {
    let shape = changed("mistral", json!({"sliding_window": null, "max_position_embeddings": null})).unwrap();
    assert_eq!((shape.layer_kinds[0].window, shape.max_positions), (Some(4096), 131_072));
    let mut saved = one("mistral", "language_model");
    saved.config["sliding_window"] = Value::Null;
    assert_eq!(parse(&saved, Head::LanguageModel).unwrap().layer_kinds[0].window, None);
    let gemma2 = changed("gemma2", json!({"attn_logit_softcapping": null, "layer_types": null})).unwrap();
    assert_eq!(gemma2.attention.softcap, Some(50.0));
    assert_eq!(gemma2.layer_kinds[1].window, None);
    let qwen2 = changed("qwen2", json!({"layer_types": null, "max_window_layers": 0})).unwrap();
    assert!(qwen2.layer_kinds.iter().all(|kind| kind.window == Some(8)));
}

/// The cases under LORAFLEET_PARITY_CASES: every tensor of their bases is used.
#[test]
fn the_environment_s_parity_bases_are_read_whole() {
    let Some(cases) = std::env::var_os("LORAFLEET_PARITY_CASES") else { return };
    for case in fs::read_dir(cases).unwrap() {
        let case = case.unwrap().path();
        let base = case.join("base");
        let config: Value =
            serde_json::from_str(&fs::read_to_string(base.join("config.json")).unwrap()).unwrap();
        let head = match config["id2label"].as_object() {
            Some(labels) => Head::Classifier { labels: labels.len() },
            None => Head::LanguageModel,
        };
        let shape =
            BaseShape::read(&base, head).unwrap_or_else(|error| panic!("{}: {error}", case.display()));
        let file = read_tensor_file(&base.join("model.safetensors")).unwrap();
        let header: BTreeMap<String, Value> = serde_json::from_str(&file.header).unwrap();
        let stored: Vec<_> = header.keys().filter(|name| *name != "__metadata__").cloned().collect();
        let mut used: Vec<_> = shape.tensors.values().map(|tensor| tensor.stored.clone()).collect();
        used.sort();
        assert_eq!(used, stored, "{}", case.display());
        assert!(shape.fresh.is_empty());
    }
}
