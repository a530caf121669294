//! Merging for the parity test: a base folder whose targeted weights are `W + s·B·A`.

use std::collections::HashMap;
use std::path::Path;

use lorafleet_lora::Adapter;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// Writes a copy of the base at `from` into `to`, with the adapter added to its weights (f32 files, as the cases have).
pub fn merge(from: &Path, adapter: &Adapter, to: &Path) {
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let merged: HashMap<String, Vec<u8>> = adapter
        .layout
        .modules()
        .iter()
        .map(|module| {
            let name = format!("{}.weight", module.module);
            let lora = adapter.view().get(&module.module).unwrap();
            let weight = file.tensor(&name).unwrap();
            assert_eq!(
                (weight.dtype(), weight.shape()),
                (Dtype::F32, &[module.out_features, module.in_features][..])
            );
            let (inputs, rank) = (module.in_features, module.rank);
            let add = |(i, w): (usize, &[u8; 4])| {
                let (row, column) = (i / inputs, i % inputs);
                let delta: f64 = (0..rank)
                    .map(|r| f64::from(lora.b[row * rank + r]) * f64::from(lora.a[r * inputs + column]))
                    .sum();
                (f32::from_le_bytes(*w) + (f64::from(module.scale) * delta) as f32).to_le_bytes()
            };
            let merged = weight.data().as_chunks::<4>().0.iter().enumerate().flat_map(add).collect();
            (name, merged)
        })
        .collect();
    let tensors = file.tensors().into_iter().map(|(name, view)| match merged.get(&name) {
        Some(data) => {
            let view = TensorView::new(view.dtype(), view.shape().to_vec(), data).unwrap();
            (name, view)
        }
        None => (name, view),
    });
    let bytes = safetensors::serialize(tensors.collect::<Vec<_>>(), None).unwrap();
    std::fs::write(to.join("model.safetensors"), bytes).unwrap();
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
}
