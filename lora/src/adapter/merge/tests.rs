//! Merging: every form, sharded, bounded in memory, whole or not at all.

use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::{SafeTensors, tensor::TensorView};

use super::*;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name)
}

fn quiet(base: &Path, adapter: &Path, out: &Path, dtype: Option<Dtype>) -> Result<Merged, MergeError> {
    merge(base, adapter, out, dtype, &mut |_| std::ops::ControlFlow::Continue(()))
}

/// The tensors of a folder of one or several shards.
fn tensors(dir: &Path) -> BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for path in lorafleet_spec::base::weight_files(dir).unwrap() {
        let bytes = std::fs::read(path).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            all.insert(name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
        }
    }
    all
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// A copy of a base in bf16, a shard for every tensor.
fn shatter(base: &Path, to: &Path) {
    std::fs::copy(base.join("config.json"), to.join("config.json")).unwrap();
    std::fs::write(to.join("tokenizer.json"), "{}").unwrap();
    let mut map = serde_json::Map::new();
    for (i, (name, (_, shape, data))) in tensors(base).into_iter().enumerate() {
        let file = format!("model-{i:05}.safetensors");
        let bf16: Vec<u8> =
            floats(&data).iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
        let view = TensorView::new(safetensors::Dtype::BF16, shape, &bf16).unwrap();
        safetensors::serialize_to_file([(name.clone(), view)], None, &to.join(&file)).unwrap();
        map.insert(name, file.into());
    }
    let index = serde_json::json!({ "weight_map": map });
    std::fs::write(to.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn adapted_weights_change_and_the_others_are_the_same_bytes() {
    let (dir, from) = (tempfile::tempdir().unwrap(), case("llama-qv"));
    let out = dir.path().join("merged");
    let mut seen = Vec::new();
    let merged = merge(&from.join("base"), &from.join("trained"), &out, None, &mut |progress| {
        seen.push((progress.done, progress.total));
        std::ops::ControlFlow::Continue(())
    });
    let merged = merged.unwrap();
    let (before, after) = (tensors(&from.join("base")), tensors(&out));
    assert!(before.keys().eq(after.keys()));
    let changed = |name: &String| name.contains("q_proj") || name.contains("v_proj");
    for (name, tensor) in &before {
        assert_eq!(tensor == &after[name], !changed(name), "{name}");
    }
    assert_eq!(merged.changed, before.keys().filter(|name| changed(name)).count());
    assert_eq!(merged.changed + merged.copied, before.len());
    assert!(!merged.untied && seen.windows(2).all(|w| w[0].0 < w[1].0));
    assert_eq!(seen.last().map(|(done, total)| done == total), Some(true));
    let config = |dir: &Path| std::fs::read(dir.join("config.json")).unwrap();
    assert_eq!(config(&out), config(&from.join("base")));
    assert!(out.join("generation_config.json").exists());
}

#[test]
fn a_merge_that_is_broken_off_leaves_nothing() {
    let (dir, from) = (tempfile::tempdir().unwrap(), case("llama-qv"));
    let out = dir.path().join("merged");
    let mut once = |_: Progress<'_>| std::ops::ControlFlow::Break(());
    let broken = merge(&from.join("base"), &from.join("trained"), &out, None, &mut once);
    assert!(matches!(broken, Err(MergeError::BrokenOff)));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn shards_types_and_index_are_kept_in_little_memory() {
    let (dir, from) = (tempfile::tempdir().unwrap(), case("llama-qv"));
    let base = dir.path().join("base");
    std::fs::create_dir(&base).unwrap();
    shatter(&from.join("base"), &base);
    let out = dir.path().join("merged");
    let merged = quiet(&base, &from.join("trained"), &out, None).unwrap();
    let (before, after) = (tensors(&base), tensors(&out));
    assert!(before.len() > 20);
    for (name, (dtype, shape, data)) in &before {
        let (kind, sizes, bytes) = &after[name];
        assert_eq!((dtype, shape, data.len()), (kind, sizes, bytes.len()), "{name}");
    }
    let index = |dir: &Path| -> serde_json::Value {
        let text = std::fs::read(dir.join("model.safetensors.index.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    assert_eq!(index(&base)["weight_map"], index(&out)["weight_map"]);
    assert!(out.join("tokenizer.json").exists());
    // Buffers follow the largest tensor here, and a slab of it where it is larger: never the sum of the shards.
    let largest = before.values().map(|(_, _, data)| data.len()).max().unwrap();
    assert!(merged.most_buffered <= 4 * largest, "{} bytes", merged.most_buffered);
}

#[test]
fn another_type_is_written_and_said() {
    let (dir, from) = (tempfile::tempdir().unwrap(), case("llama-qv"));
    let out = dir.path().join("merged");
    quiet(&from.join("base"), &from.join("trained"), &out, Some(Dtype::Bf16)).unwrap();
    assert!(tensors(&out).values().all(|(dtype, ..)| *dtype == safetensors::Dtype::BF16));
    let config = std::fs::read_to_string(out.join("config.json")).unwrap();
    assert!(config.contains("\"bfloat16\""), "{config}");
}

#[test]
fn nothing_is_overwritten_and_nothing_is_left() {
    let (dir, from) = (tempfile::tempdir().unwrap(), case("llama-qv"));
    let out = dir.path().join("merged");
    std::fs::create_dir(&out).unwrap();
    let error = quiet(&from.join("base"), &from.join("trained"), &out, None).unwrap_err().to_string();
    assert!(error.contains("exists already"), "{error}");
    std::fs::remove_dir(&out).unwrap();
    let other = case("llama-all-linear").join("trained");
    let error = quiet(&from.join("base"), &other, &out, None);
    // The same names and sizes, so it fits; a base of other sizes does not.
    assert!(error.is_ok());
    std::fs::remove_dir_all(&out).unwrap();
    let broken = dir.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    for file in [CONFIG_FILE, WEIGHTS_FILE] {
        std::fs::copy(from.join("trained").join(file), broken.join(file)).unwrap();
    }
    let mut bytes = std::fs::read(broken.join(WEIGHTS_FILE)).unwrap();
    let len = bytes.len();
    bytes[len - 4..].copy_from_slice(&3e38f32.to_le_bytes());
    std::fs::write(broken.join(WEIGHTS_FILE), bytes).unwrap();
    let error = quiet(&from.join("base"), &broken, &out, Some(Dtype::F16)).unwrap_err();
    assert!(matches!(error, MergeError::Value { dtype: Dtype::F16, .. }), "{error}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["broken"]);
}
