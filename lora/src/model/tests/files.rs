//! Bases on disk: truncated, sharded.

use super::*;

#[test]
fn a_file_truncated_after_its_shape_was_read_is_named() {
    let from = base("llama-qv");
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(from.join(file), dir.path().join(file)).unwrap();
    }
    let shape = BaseShape::read(dir.path(), Head::LanguageModel).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("model.safetensors")).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    let error = Transformer::load(dir.path(), &shape, Precision::F32).unwrap_err().to_string();
    assert!(error.contains("model.") && error.contains("truncated"), "{error}");
}

#[test]
fn shards_are_one_model() {
    use safetensors::{SafeTensors, serialize_to_file};
    let from = base("llama-qv");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("config.json"), dir.path().join("config.json")).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let whole = SafeTensors::deserialize(&bytes).unwrap();
    let shard = |name: &str| format!("model-{}.safetensors", name.len() % 2);
    for i in ["0", "1"] {
        let file = format!("model-{i}.safetensors");
        let tensors = whole.tensors().into_iter().filter(|(name, _)| shard(name) == file);
        serialize_to_file(tensors, None, &dir.path().join(&file)).unwrap();
    }
    let map: serde_json::Map<_, _> = whole.names().iter().map(|n| (n.to_string(), shard(n).into())).collect();
    let index = serde_json::json!({ "weight_map": map });
    std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let logits =
        |dir: &Path| load(dir).0.logits(&PackedBatch::unlabelled([&[3u32, 50, 7][..]]), None).unwrap();
    assert_eq!(logits(dir.path()), logits(&from));
}
