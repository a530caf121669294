//! A merged base computes what the base and its adapter compute, also where a tied head must be untied, and in bf16.

use std::path::{Path, PathBuf};

use lorafleet_lora::adapter::merge::{Merged, merge};
use lorafleet_lora::model::PackedBatch;
use lorafleet_lora::{Adapter, Base};
use lorafleet_spec::base::Dtype;
use safetensors::Dtype as Stored;
use safetensors::tensor::TensorView;

use crate::fixtures::workspace;

const TOKENS: [u32; 9] = [5, 100, 23, 7, 198, 64, 3, 3, 90];

/// A tied base of the parity cases, and an adapter of rank 2 on these modules `(name, in, out)`.
fn adapter(dir: &Path, modules: &[(&str, usize, usize)]) -> (PathBuf, PathBuf) {
    let base = workspace("lora/tests/parity/llama-all-linear/base");
    let names: Vec<&str> = modules.iter().map(|m| m.0.rsplit('.').next().unwrap()).collect();
    let config = serde_json::json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 3, "target_modules": names
    });
    let noise = |len: usize, seed: usize| -> Vec<u8> {
        let value = |i: usize| ((i * 37 + seed * 101) % 83) as f32 / 83.0 - 0.5;
        (0..len).flat_map(|i| value(i).to_le_bytes()).collect()
    };
    let mut tensors = Vec::new();
    for (seed, (name, inputs, outputs)) in modules.iter().enumerate() {
        let (a, b) = match name.ends_with("embed_tokens") {
            true => ("lora_embedding_A", "lora_embedding_B"),
            false => ("lora_A.weight", "lora_B.weight"),
        };
        tensors.push((format!("base_model.model.{name}.{a}"), vec![2, *inputs], noise(2 * inputs, seed)));
        tensors.push((
            format!("base_model.model.{name}.{b}"),
            vec![*outputs, 2],
            noise(2 * outputs, seed + 9),
        ));
    }
    let views = tensors
        .iter()
        .map(|(key, shape, bytes)| (key, TensorView::new(Stored::F32, shape.clone(), bytes).unwrap()));
    let folder = dir.join("adapter");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("adapter_model.safetensors"), safetensors::serialize(views, None).unwrap())
        .unwrap();
    (base, folder)
}

/// Logits of the base with the adapter, and of the base that has it merged.
fn both(base: &Path, adapter: &Path, out: &Path, dtype: Option<Dtype>) -> (Vec<f32>, Vec<f32>, Merged) {
    let merged = merge(base, adapter, out, dtype, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    let base = Base::load(base).unwrap();
    let adapter = Adapter::load(adapter, base.shape(), &|name| base.tensor(name)).unwrap();
    let batch = PackedBatch::unlabelled([TOKENS.as_slice()]);
    let unmerged = base.model().logits(&batch, Some(&adapter.view())).unwrap();
    let alone = base.model().logits(&batch, None).unwrap();
    assert!(alone.iter().zip(&unmerged).any(|(a, b)| (a - b).abs() > 0.1), "the adapter does something");
    let after = Base::load(out).unwrap().model().logits(&batch, None).unwrap();
    (unmerged, after, merged)
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

const HEAD: (&str, usize, usize) = ("lm_head", 48, 199);
const TOKENS_TABLE: (&str, usize, usize) = ("model.embed_tokens", 199, 48);
const DOWN: (&str, usize, usize) = ("model.layers.0.mlp.down_proj", 112, 48);
const DOWN_1: (&str, usize, usize) = ("model.layers.1.mlp.down_proj", 112, 48);

#[test]
fn a_tied_head_or_embedding_that_is_adapted_becomes_its_own() {
    for modules in [&[HEAD][..], &[TOKENS_TABLE], &[TOKENS_TABLE, HEAD]] {
        let dir = tempfile::tempdir().unwrap();
        let (base, adapter) = adapter(dir.path(), modules);
        let out = dir.path().join("merged");
        let (unmerged, merged, report) = both(&base, &adapter, &out, None);
        assert!(report.untied);
        let difference = largest_difference(&unmerged, &merged);
        assert!(difference < 1e-4, "{modules:?}: {difference}");
        let config = std::fs::read_to_string(out.join("config.json")).unwrap();
        assert!(config.contains("\"tie_word_embeddings\": false"), "{config}");
    }
}

#[test]
fn a_merge_in_bf16_is_off_by_its_rounding() {
    let dir = tempfile::tempdir().unwrap();
    let (base, adapter) = adapter(dir.path(), &[DOWN, DOWN_1]);
    let (unmerged, merged, report) = both(&base, &adapter, &dir.path().join("merged"), Some(Dtype::Bf16));
    assert!(!report.untied);
    let largest = unmerged.iter().fold(0f32, |most, x| most.max(x.abs()));
    let difference = largest_difference(&unmerged, &merged);
    // 8 bits of every weight.
    assert!(difference > 0.0 && difference < 0.02 * largest, "{difference} of {largest}");
}
