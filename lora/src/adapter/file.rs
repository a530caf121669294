//! An adapter's weights ⇄ safetensors bytes, the same bytes for the same weights.

use std::collections::{BTreeSet, HashMap};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::{AdapterError, WEIGHTS_FILE};
use crate::params::{AdaptedModule, Layout};

/// PEFT's key of a module's `A` (`[rank, in_features]`).
pub fn key_a(module: &str) -> String {
    format!("base_model.model.{module}.lora_A.weight")
}

/// PEFT's key of a module's `B` (`[out_features, rank]`).
pub fn key_b(module: &str) -> String {
    format!("base_model.model.{module}.lora_B.weight")
}

/// One named matrix of a flat buffer.
pub(crate) struct Matrix {
    pub key: String,
    pub shape: Vec<usize>,
    pub place: std::ops::Range<usize>,
}

/// Every matrix of an adapter under PEFT's key, in the order of the flat buffers.
pub(crate) fn matrices(layout: &Layout) -> Vec<Matrix> {
    let pair = |m: &AdaptedModule| {
        let a = Matrix { key: key_a(&m.module), shape: vec![m.rank, m.in_features], place: m.a.clone() };
        let b = Matrix { key: key_b(&m.module), shape: vec![m.out_features, m.rank], place: m.b.clone() };
        [a, b]
    };
    layout.modules().iter().flat_map(pair).collect()
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The bytes of `adapter_model.safetensors`: PEFT's keys, f32, sorted by name.
pub fn write_weights(layout: &Layout, weights: &[f32]) -> Vec<u8> {
    let raw = bytes_of(weights);
    let tensors = matrices(layout).into_iter().map(|matrix| {
        let data = &raw[matrix.place.start * 4..matrix.place.end * 4];
        let view = TensorView::new(Dtype::F32, matrix.shape, data).expect("a matrix is as long as its place");
        (matrix.key, view)
    });
    // One metadata entry, so that its order is one too.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(tensors, Some(metadata)).expect("names are unique and sizes consistent")
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
        let unread = tensors.names().into_iter().map(str::to_owned).collect();
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
        let bytes = write_weights(&layout, &weights);
        assert_eq!(bytes, write_weights(&layout, &weights));
        assert_eq!(read_weights(&layout, &bytes).unwrap(), weights);
    }

    #[test]
    fn half_precision_files_are_read() {
        let mut layout = Layout::new();
        layout.push("q", 1, 1, 1, 1.0);
        let (a, b) = (half::f16::from_f32(0.5).to_le_bytes(), half::bf16::from_f32(-2.0).to_le_bytes());
        let tensors = [
            (key_a("q"), TensorView::new(Dtype::F16, vec![1, 1], &a).unwrap()),
            (key_b("q"), TensorView::new(Dtype::BF16, vec![1, 1], &b).unwrap()),
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
        let bytes = write_weights(&other, &vec![0.0; other.len()]);
        let message = read_weights(&layout(), &bytes).unwrap_err().to_string();
        assert!(message.contains("up_proj.lora_A.weight has the shape [1, 4], not [1, 3]"), "{message}");
        assert!(message.contains("down_proj.lora_B.weight is not expected"), "{message}");
        let mut bytes = write_weights(&layout(), &weights());
        bytes.truncate(bytes.len() - 1);
        assert!(matches!(read_weights(&layout(), &bytes), Err(AdapterError::Safetensors { .. })));
    }
}
