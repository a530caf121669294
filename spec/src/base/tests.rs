//! Bases read whole, and everything that can be wrong with one.

pub(crate) mod families;

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::*;
use crate::digest;

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/base")
}

/// A copy of the example's base that a test may break.
fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in base_files(&example()).unwrap() {
        fs::copy(example().join(&name), dir.path().join(&name)).unwrap();
    }
    dir
}

fn config() -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(example().join("config.json")).unwrap()).unwrap()
}

/// What a config with `changes` on top of the example's says (null removes a field), with the example's weights.
fn with(changes: serde_json::Value) -> Result<BaseShape, BaseError> {
    let mut config = config();
    for (field, value) in changes.as_object().unwrap() {
        config[field] = value.clone();
    }
    let file = read_tensor_file(&example().join("model.safetensors")).unwrap();
    BaseShape::parse(&config.to_string(), &[file], Head::LanguageModel)
}

fn error(changes: serde_json::Value) -> String {
    with(changes).unwrap_err().to_string()
}

#[test]
fn the_example_s_shape() {
    let shape = BaseShape::read(&example(), Head::LanguageModel).unwrap();
    assert_eq!(shape.family.name, "llama");
    assert_eq!((shape.hidden, shape.layers, shape.heads, shape.kv_heads, shape.head_dim), (256, 6, 8, 4, 32));
    assert_eq!((shape.mlp, shape.vocab, shape.max_positions), (704, 4096, 512));
    assert_eq!(shape.norm, Norm { kind: NormKind::Rms, eps: 1e-5 });
    assert_eq!(shape.rope_at(0), Some(&Rope { theta: 10_000.0, scaling: RopeScaling::None }));
    assert!(shape.tied && shape.linears.iter().all(|linear| !linear.bias));
    assert_eq!(shape.parameters(), 5_475_584);
    assert_eq!(shape.linears.len(), 6 * 7 + 1);
    let k = shape.linear("model.layers.3.self_attn.k_proj").unwrap();
    assert_eq!((k.in_features, k.out_features, k.layer), (256, 128, Some(3)));
    assert_eq!(shape.linears.last().unwrap().role, Role::Head);
    let embedding = &shape.tensors["model.embed_tokens.weight"];
    assert_eq!((embedding.dtype, embedding.range.1 - embedding.range.0), (Dtype::Bf16, 2_097_152));
}

#[test]
fn both_generations_of_config_say_the_same() {
    let new = with(serde_json::json!({"rope_theta": null, "torch_dtype": null})).unwrap();
    let old = with(serde_json::json!({"rope_parameters": null, "dtype": null, "head_dim": null})).unwrap();
    assert_eq!(new, old);
    let scaled = with(serde_json::json!({"rope_parameters": null, "rope_theta": 5e5, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}}))
    .unwrap();
    assert_eq!(scaled.rope_at(0).unwrap().theta, 5e5);
    assert!(matches!(
        scaled.rope_at(0).unwrap().scaling,
        RopeScaling::Llama3 { original_max_positions: 8192.0, .. }
    ));
}

#[test]
fn unknown_architectures_say_which_are_known() {
    let error = error(serde_json::json!({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}));
    let wanted = "config.json: the architecture MambaForCausalLM is not known; known are llama";
    assert!(error.starts_with(wanted), "{error}");
    let t5 = with(serde_json::json!({"architectures": null, "model_type": "t5"})).unwrap_err().to_string();
    assert!(t5.contains("t5 is not known"), "{t5}");
    assert!(with(serde_json::json!({"architectures": null})).is_ok());
}

#[test]
fn config_errors_come_at_once() {
    let error = error(serde_json::json!({
        "hidden_size": null, "num_key_value_heads": 3, "hidden_act": "tanh", "rms_norm_eps": "small",
        "rope_parameters": {"rope_type": "longrope"}, "quantization_config": {"quant_method": "gptq"},
        "tie_word_embeddings": 1,
    }));
    for wanted in [
        "hidden_size is missing",
        "no multiple of num_key_value_heads (3)",
        "hidden_act tanh is not known",
        "rms_norm_eps is \"small\"",
        "rope_type longrope is not known",
        "quantized (gptq)",
        "tie_word_embeddings is 1",
    ] {
        assert!(error.contains(wanted), "{wanted} in {error}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let error =
        error(serde_json::json!({"num_hidden_layers": 7, "tie_word_embeddings": false, "vocab_size": 4097}));
    for wanted in [
        "model.embed_tokens.weight has the shape [4096, 256], not [4097, 256]",
        "model.layers.6.self_attn.q_proj.weight [256, 256] is missing",
        "more",
    ] {
        assert!(error.contains(wanted), "{wanted} in {error}");
    }
    let untied = with(serde_json::json!({"tie_word_embeddings": false})).unwrap_err().to_string();
    assert!(untied.contains("lm_head.weight [4096, 256] is missing"), "{untied}");
    let biased = with(serde_json::json!({"attention_bias": true})).unwrap_err().to_string();
    assert!(biased.contains("model.layers.0.self_attn.q_proj.bias [256] is missing"), "{biased}");
}

#[test]
fn a_truncated_file_is_told() {
    let dir = copy();
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    for (len, wanted) in [
        (bytes.len() - 1, "is truncated: its tensors need 10957216 bytes, it has 10957215"),
        (1000, "is truncated: its header needs 6048 bytes"),
        (3, "is truncated: it has 3 bytes"),
        (0, "is truncated"),
    ] {
        fs::write(&path, &bytes[..len]).unwrap();
        let error = BaseShape::read(dir.path(), Head::LanguageModel).unwrap_err().to_string();
        assert!(error.contains(wanted) && error.starts_with("model.safetensors: "), "{len}: {error}");
    }
    fs::write(&path, b"<!DOCTYPE html><html>").unwrap();
    let error = BaseShape::read(dir.path(), Head::LanguageModel).unwrap_err().to_string();
    assert!(error.contains("does not begin like a safetensors file"), "{error}");
}

#[test]
fn missing_files_are_told_together() {
    let dir = tempfile::tempdir().unwrap();
    let error = BaseShape::read(dir.path(), Head::LanguageModel).unwrap_err().to_string();
    assert!(error.contains("config.json is missing; model.safetensors is missing, and so is"), "{error}");
    let error = BaseShape::read(&dir.path().join("nowhere"), Head::LanguageModel).unwrap_err().to_string();
    assert!(error.contains("is not a folder"), "{error}");
    fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    let error = base_files(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("pytorch_model.bin is pickled, which is not read; convert it once: python -c"),
        "{error}"
    );
}

/// Writes a safetensors file of zeros with these tensors.
fn write_shard(path: &Path, tensors: &[(&str, &TensorEntry)]) {
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, tensor) in tensors {
        let bytes = tensor.range.1 - tensor.range.0;
        let entry =
            serde_json::json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": [at, at + bytes]});
        header.insert((*name).to_owned(), entry);
        at += bytes;
    }
    let header = serde_json::to_string(&header).unwrap();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.resize(bytes.len() + at as usize, 0);
    fs::write(path, bytes).unwrap();
}

#[test]
fn shards_are_found_by_their_index() {
    let shape = BaseShape::read(&example(), Head::LanguageModel).unwrap();
    let dir = copy();
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let tensors: Vec<_> = shape.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let (first, second) = tensors.split_at(20);
    write_shard(&dir.path().join("model-00001-of-00002.safetensors"), first);
    write_shard(&dir.path().join("model-00002-of-00002.safetensors"), second);
    let map: serde_json::Map<_, _> = [(first, 1), (second, 2)]
        .into_iter()
        .flat_map(|(part, n)| part.iter().map(move |(name, _)| (name, n)))
        .map(|(name, n)| ((*name).to_owned(), format!("model-0000{n}-of-00002.safetensors").into()))
        .collect();
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let sharded = BaseShape::read(dir.path(), Head::LanguageModel).unwrap();
    assert_eq!(sharded.linears, shape.linears);
    assert_eq!(sharded.tensors["model.norm.weight"].file, "model-00002-of-00002.safetensors");
    let files = base_files(dir.path()).unwrap();
    assert!(files.contains(&"model.safetensors.index.json".to_owned()) && files.len() == 8, "{files:?}");
    fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).unwrap();
    let error = BaseShape::read(dir.path(), Head::LanguageModel).unwrap_err().to_string();
    assert!(error.contains("model-00002-of-00002.safetensors is missing"), "{error}");
}

#[test]
fn an_index_cannot_leave_the_folder() {
    let dir = copy();
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let index = r#"{"weight_map": {"a": "../../etc/passwd"}}"#;
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let error = base_files(dir.path()).unwrap_err().to_string();
    assert!(error.contains("no file beside it"), "{error}");
}

#[test]
fn a_base_s_files_have_a_digest() {
    let dir = copy();
    fs::write(dir.path().join("README.md"), "no part of it").unwrap();
    let sums = |dir: &Path| -> Vec<_> {
        let files = base_files(dir).unwrap();
        files.into_iter().map(|name| (name.clone(), digest::hash_file(&dir.join(name)).unwrap().1)).collect()
    };
    assert_eq!(sums(dir.path()).len(), 6);
    assert_eq!(digest::base_digest(&sums(dir.path())), digest::base_digest(&sums(&example())));
}
