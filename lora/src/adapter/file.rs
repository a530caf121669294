//! An adapter's weights ⇄ safetensors bytes, the same bytes for the same weights.

use std::collections::BTreeSet;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::{AdapterError, WEIGHTS_FILE};
use crate::params::{AdaptedModule, Layout, ModuleKind};
use crate::tensor_file::{Tensor, TensorFile, Values};

/// One named tensor of a flat buffer.
pub(crate) struct Matrix {
    pub key: String,
    pub shape: Vec<usize>,
    pub place: std::ops::Range<usize>,
}

/// Every tensor of an adapter under PEFT's key, in the order of the flat buffers.
///
/// Linear layers: `….lora_A.weight` `[rank, in]`, `….lora_B.weight` `[out, rank]`. Embeddings: `….lora_embedding_A`
/// `[rank, rows]`, `….lora_embedding_B` `[columns, rank]`. DoRA: `….lora_magnitude_vector` `[out]`. Whole tensors keep
/// their names, behind PEFT's prefix.
pub(crate) fn matrices(layout: &Layout) -> Vec<Matrix> {
    let mut matrices: Vec<Matrix> = layout.modules().iter().flat_map(module_matrices).collect();
    matrices.extend(layout.whole().iter().map(|tensor| Matrix {
        key: format!("{PREFIX}{}", tensor.name),
        shape: tensor.shape.clone(),
        place: tensor.place.clone(),
    }));
    matrices.sort_by_key(|matrix| matrix.place.start);
    matrices
}

/// What PEFT puts before every name of the model.
const PREFIX: &str = "base_model.model.";
/// What PEFT calls the frozen weights within an adapted module; it copies embeddings' into the adapter's file.
const FROZEN: &str = ".base_layer.";

fn module_matrices(m: &AdaptedModule) -> Vec<Matrix> {
    let name = &m.module;
    let (a, b) = match m.kind {
        ModuleKind::Linear => ("lora_A.weight", "lora_B.weight"),
        ModuleKind::Embedding => ("lora_embedding_A", "lora_embedding_B"),
    };
    let matrix = |tensor: &str, shape: Vec<usize>, place: &std::ops::Range<usize>| Matrix {
        key: format!("{PREFIX}{name}.{tensor}"),
        shape,
        place: place.clone(),
    };
    let mut all =
        vec![matrix(a, vec![m.rank, m.in_features], &m.a), matrix(b, vec![m.out_features, m.rank], &m.b)];
    if let Some(place) = &m.magnitude {
        all.push(matrix("lora_magnitude_vector", vec![m.out_features], place));
    }
    all
}

/// `adapter_model.safetensors`: PEFT's keys, f32, sorted by name.
pub fn write_weights<'a>(layout: &Layout, weights: &'a [f32]) -> TensorFile<'a> {
    let tensor =
        |Matrix { key, shape, place }| Tensor { name: key, shape, values: Values::Floats(&weights[place]) };
    TensorFile::new(matrices(layout).into_iter().map(tensor).collect())
}

/// Reads `adapter_model.safetensors` (f32, f16 or bf16) into a flat buffer of this layout.
///
/// # Errors
/// When the file is damaged, or its tensors are not exactly those of the layout.
pub fn read_weights(layout: &Layout, bytes: &[u8]) -> Result<Vec<f32>, AdapterError> {
    let file = parse(WEIGHTS_FILE, bytes)?;
    let mut weights = vec![0.0; layout.len()];
    let mut problems = Problems::new(&file, WEIGHTS_FILE);
    problems.fill(layout, &mut weights);
    problems.finish()?;
    Ok(weights)
}

/// Classes of the classifier whose head the bytes of `adapter_model.safetensors` hold.
///
/// # Errors
/// When the file is damaged, or holds no classifier's last layer.
pub fn labels(bytes: &[u8]) -> Result<usize, AdapterError> {
    const LAST: [&str; 3] = ["classifier.out_proj.weight", "classifier.weight", "score.weight"];
    let file = parse(WEIGHTS_FILE, bytes)?;
    let last = LAST.iter().find_map(|name| file.tensor(&format!("{PREFIX}{name}")).ok());
    last.and_then(|view| view.shape().first().copied()).ok_or_else(|| AdapterError::Tensors {
        file: WEIGHTS_FILE,
        problems: format!("a classifier's adapter holds its last layer, one of {}", LAST.join(", ")),
    })
}

fn parse<'a>(file: &'static str, bytes: &'a [u8]) -> Result<SafeTensors<'a>, AdapterError> {
    SafeTensors::deserialize(bytes)
        .map_err(|error| AdapterError::Safetensors { file, message: error.to_string() })
}

/// Reads tensors by name and gathers what is wrong, to say it all at once.
struct Problems<'a> {
    tensors: &'a SafeTensors<'a>,
    file: &'static str,
    unread: BTreeSet<String>,
    found: Vec<String>,
}

impl<'a> Problems<'a> {
    fn new(tensors: &'a SafeTensors<'a>, file: &'static str) -> Self {
        // PEFT copies the frozen weights of an adapted embedding along; the base has them.
        let unread = tensors.names().into_iter().filter(|name| !name.contains(FROZEN));
        let unread = unread.map(str::to_owned).collect();
        Self { tensors, file, unread, found: Vec::new() }
    }

    fn take(&mut self, key: &str) -> Option<TensorView<'a>> {
        self.unread.remove(key);
        match self.tensors.tensor(key) {
            Ok(view) => Some(view),
            Err(_) => {
                self.found.push(format!("{key} is missing"));
                None
            }
        }
    }

    fn fill(&mut self, layout: &Layout, buffer: &mut [f32]) {
        for Matrix { key, shape, place } in matrices(layout) {
            let Some(view) = self.take(&key) else { continue };
            if view.shape() != shape {
                self.found.push(format!("{key} has the shape {:?}, not {shape:?}", view.shape()));
            } else if !copy_as_f32(&view, &mut buffer[place.clone()]) {
                self.found.push(format!("{key} is {:?}, not F32, F16 or BF16", view.dtype()));
            } else if !buffer[place].iter().all(|value| value.is_finite()) {
                self.found.push(format!("{key} has values that are not finite"));
            }
        }
    }

    fn finish(mut self) -> Result<(), AdapterError> {
        self.found.extend(self.unread.iter().map(|key| format!("{key} is not expected")));
        if self.found.is_empty() {
            return Ok(());
        }
        const SHOWN: usize = 6;
        let mut problems = self.found.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
        if self.found.len() > SHOWN {
            problems += &format!("; and {} more", self.found.len() - SHOWN);
        }
        Err(AdapterError::Tensors { file: self.file, problems })
    }
}

/// Copies a tensor into f32 values; false when its type is none of f32, f16, bf16.
fn copy_as_f32(view: &TensorView<'_>, to: &mut [f32]) -> bool {
    let data = view.data();
    match view.dtype() {
        Dtype::F32 => {
            for (to, bytes) in to.iter_mut().zip(data.as_chunks::<4>().0) {
                *to = f32::from_le_bytes(*bytes);
            }
        }
        Dtype::F16 => {
            for (to, bytes) in to.iter_mut().zip(data.as_chunks::<2>().0) {
                *to = half::f16::from_le_bytes(*bytes).to_f32();
            }
        }
        Dtype::BF16 => {
            for (to, bytes) in to.iter_mut().zip(data.as_chunks::<2>().0) {
                *to = half::bf16::from_le_bytes(*bytes).to_f32();
            }
        }
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let mut layout = Layout::new();
        layout.push("model.layers.0.self_attn.v_proj", 3, 2, 2, 1.0);
        layout.push("model.layers.0.mlp.up_proj", 3, 4, 1, 1.0);
        layout
    }

    fn weights() -> Vec<f32> {
        (0..layout().len()).map(|i| i as f32).collect()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let (layout, weights) = (layout(), weights());
        let bytes = write_weights(&layout, &weights).to_vec();
        assert_eq!(bytes, write_weights(&layout, &weights).to_vec());
        assert_eq!(read_weights(&layout, &bytes).unwrap(), weights);
    }

    #[test]
    fn every_form_has_pefts_keys() {
        let mut layout = Layout::new();
        let module = |module, kind| crate::params::ModuleSpec {
            module,
            kind,
            in_features: 5,
            out_features: 3,
            rank: 2,
            scale: 1.0,
            magnitude: true,
        };
        layout.push_whole("classifier.dense.weight", &[3, 5]);
        layout.push_module(&module("model.embed_tokens", ModuleKind::Embedding));
        layout.push_module(&module("lm_head", ModuleKind::Linear));
        let keys: Vec<_> = matrices(&layout).into_iter().map(|m| (m.key, m.shape)).collect();
        let expected = [
            ("base_model.model.classifier.dense.weight", vec![3, 5]),
            ("base_model.model.model.embed_tokens.lora_embedding_A", vec![2, 5]),
            ("base_model.model.model.embed_tokens.lora_embedding_B", vec![3, 2]),
            ("base_model.model.model.embed_tokens.lora_magnitude_vector", vec![3]),
            ("base_model.model.lm_head.lora_A.weight", vec![2, 5]),
            ("base_model.model.lm_head.lora_B.weight", vec![3, 2]),
            ("base_model.model.lm_head.lora_magnitude_vector", vec![3]),
        ];
        assert_eq!(keys, expected.map(|(key, shape)| (key.to_owned(), shape)));
        let weights: Vec<f32> = (0..layout.len()).map(|i| i as f32).collect();
        assert_eq!(read_weights(&layout, &write_weights(&layout, &weights).to_vec()).unwrap(), weights);
    }

    #[test]
    fn an_embeddings_frozen_weights_are_passed_over() {
        let mut layout = Layout::new();
        layout.push("lm_head", 1, 1, 1, 1.0);
        let value = 0.5f32.to_le_bytes();
        let view = || TensorView::new(Dtype::F32, vec![1, 1], &value).unwrap();
        let names = ["lm_head.lora_A.weight", "lm_head.lora_B.weight", "lm_head.base_layer.weight"];
        let tensors = names.map(|name| (format!("{PREFIX}{name}"), view()));
        let bytes = safetensors::serialize(tensors, None).unwrap();
        assert_eq!(read_weights(&layout, &bytes).unwrap(), [0.5, 0.5]);
    }

    #[test]
    fn half_precision_files_are_read() {
        let mut layout = Layout::new();
        layout.push("q", 1, 1, 1, 1.0);
        let (a, b) = (half::f16::from_f32(0.5).to_le_bytes(), half::bf16::from_f32(-2.0).to_le_bytes());
        let tensors = [
            (
                "base_model.model.q.lora_A.weight".to_owned(),
                TensorView::new(Dtype::F16, vec![1, 1], &a).unwrap(),
            ),
            (
                "base_model.model.q.lora_B.weight".to_owned(),
                TensorView::new(Dtype::BF16, vec![1, 1], &b).unwrap(),
            ),
        ];
        let bytes = safetensors::serialize(tensors, None).unwrap();
        assert_eq!(read_weights(&layout, &bytes).unwrap(), [0.5, -2.0]);
    }

    #[test]
    fn wrong_tensors_are_all_named() {
        let mut other = Layout::new();
        other.push("model.layers.0.self_attn.v_proj", 3, 2, 2, 1.0);
        other.push("model.layers.0.mlp.up_proj", 4, 3, 1, 1.0);
        other.push("model.layers.0.mlp.down_proj", 1, 1, 1, 1.0);
        let bytes = write_weights(&other, &vec![0.0; other.len()]).to_vec();
        let message = read_weights(&layout(), &bytes).unwrap_err().to_string();
        assert!(message.contains("up_proj.lora_A.weight has the shape [1, 4], not [1, 3]"), "{message}");
        assert!(message.contains("down_proj.lora_B.weight is not expected"), "{message}");
        let mut bytes = write_weights(&layout(), &weights()).to_vec();
        bytes.truncate(bytes.len() - 1);
        assert!(matches!(read_weights(&layout(), &bytes), Err(AdapterError::Safetensors { .. })));
    }
}
