//! An adapter's weights and its optimizer's state ⇄ safetensors bytes, the same bytes for the same state.

use std::collections::{BTreeSet, HashMap};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::{AdapterError, OPTIMIZER_FILE, WEIGHTS_FILE};
use crate::exact::SCALE_BITS;
use crate::params::{AdaptedModule, Layout, State};

/// PEFT's key of a module's `A` (`[rank, in_features]`).
pub fn key_a(module: &str) -> String {
    format!("base_model.model.{module}.lora_A.weight")
}

/// PEFT's key of a module's `B` (`[out_features, rank]`).
pub fn key_b(module: &str) -> String {
    format!("base_model.model.{module}.lora_B.weight")
}

/// One named matrix of a flat buffer.
struct Matrix {
    key: String,
    shape: Vec<usize>,
    place: std::ops::Range<usize>,
}

fn matrices(layout: &Layout, prefix: &str) -> Vec<Matrix> {
    let pair = |m: &AdaptedModule| {
        let a = Matrix {
            key: format!("{prefix}{}", key_a(&m.module)),
            shape: vec![m.rank, m.in_features],
            place: m.a.clone(),
        };
        let b = Matrix {
            key: format!("{prefix}{}", key_b(&m.module)),
            shape: vec![m.out_features, m.rank],
            place: m.b.clone(),
        };
        [a, b]
    };
    layout.modules().iter().flat_map(pair).collect()
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The bytes of `adapter_model.safetensors`: PEFT's keys, f32, sorted by name.
pub fn write_weights(layout: &Layout, weights: &[f32]) -> Vec<u8> {
    write(&[("", layout, weights)], &[])
}

/// The bytes of `optimizer.safetensors`: both moments under the adapter's keys, the step, the scale of exact sums.
pub fn write_optimizer(layout: &Layout, state: &State) -> Vec<u8> {
    let scalars = [("scale_bits", i64::from(SCALE_BITS)), ("step", state.step as i64)];
    write(&[(FIRST, layout, &state.first), (SECOND, layout, &state.second)], &scalars)
}

const FIRST: &str = "exp_avg/";
const SECOND: &str = "exp_avg_sq/";

fn write(buffers: &[(&str, &Layout, &[f32])], scalars: &[(&str, i64)]) -> Vec<u8> {
    let raw: Vec<Vec<u8>> = buffers.iter().map(|(_, _, values)| bytes_of(values)).collect();
    let scalars: Vec<(&str, [u8; 8])> =
        scalars.iter().map(|(name, value)| (*name, value.to_le_bytes())).collect();
    let mut tensors = Vec::new();
    for ((prefix, layout, _), raw) in buffers.iter().zip(&raw) {
        for matrix in matrices(layout, prefix) {
            let data = &raw[matrix.place.start * 4..matrix.place.end * 4];
            let view =
                TensorView::new(Dtype::F32, matrix.shape, data).expect("a matrix is as long as its place");
            tensors.push((matrix.key, view));
        }
    }
    for (name, bytes) in &scalars {
        let view = TensorView::new(Dtype::I64, vec![1], bytes).expect("8 bytes are one i64");
        tensors.push(((*name).to_owned(), view));
    }
    // Sorted by dtype and name inside; one metadata entry, so that its order is one too.
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
    problems.fill(layout, "", &mut weights);
    problems.finish()?;
    Ok(weights)
}

/// Reads `optimizer.safetensors` into a state, whose weights are left alone.
///
/// # Errors
/// When the file is damaged, its tensors are not exactly those of the layout, or its exact sums had another scale.
pub fn read_optimizer(layout: &Layout, bytes: &[u8], state: &mut State) -> Result<(), AdapterError> {
    let file = parse(OPTIMIZER_FILE, bytes)?;
    let mut problems = Problems::new(&file, OPTIMIZER_FILE);
    problems.fill(layout, FIRST, &mut state.first);
    problems.fill(layout, SECOND, &mut state.second);
    let step = problems.scalar("step");
    if let Some(bits) = problems.scalar("scale_bits")
        && bits != i64::from(SCALE_BITS)
    {
        problems.found.push(format!("its sums have the scale 2^{bits}, this build's 2^{SCALE_BITS}"));
    }
    match step.and_then(|step| u64::try_from(step).ok()) {
        Some(step) => state.step = step,
        None => problems.found.push("step is not a number of steps".to_owned()),
    }
    problems.finish()
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

    fn fill(&mut self, layout: &Layout, prefix: &str, buffer: &mut [f32]) {
        for Matrix { key, shape, place } in matrices(layout, prefix) {
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

    fn scalar(&mut self, key: &str) -> Option<i64> {
        let view = self.take(key)?;
        let bytes = <[u8; 8]>::try_from(view.data()).ok().filter(|_| view.dtype() == Dtype::I64);
        if bytes.is_none() {
            self.found.push(format!("{key} is not one I64"));
        }
        bytes.map(i64::from_le_bytes)
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

    fn state() -> State {
        let layout = layout();
        let values = |factor: f32| (0..layout.len()).map(|i| i as f32 * factor).collect();
        State { step: 12, weights: values(1.0), first: values(0.5), second: values(0.25) }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let (layout, state) = (layout(), state());
        let weights = write_weights(&layout, &state.weights);
        assert_eq!(weights, write_weights(&layout, &state.weights));
        assert_eq!(read_weights(&layout, &weights).unwrap(), state.weights);
        let mut read = State { weights: state.weights.clone(), ..State::zeros(layout.len()) };
        read_optimizer(&layout, &write_optimizer(&layout, &state), &mut read).unwrap();
        assert_eq!(read, state);
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
        let state = state();
        let mut other = Layout::new();
        other.push("model.layers.0.self_attn.v_proj", 3, 2, 2, 1.0);
        other.push("model.layers.0.mlp.up_proj", 4, 3, 1, 1.0);
        other.push("model.layers.0.mlp.down_proj", 1, 1, 1, 1.0);
        let bytes = write_weights(&other, &vec![0.0; other.len()]);
        let message = read_weights(&layout(), &bytes).unwrap_err().to_string();
        assert!(message.contains("up_proj.lora_A.weight has the shape [1, 4], not [1, 3]"), "{message}");
        assert!(message.contains("down_proj.lora_B.weight is not expected"), "{message}");
        let mut bytes = write_weights(&layout(), &state.weights);
        bytes.truncate(bytes.len() - 1);
        assert!(matches!(read_weights(&layout(), &bytes), Err(AdapterError::Safetensors { .. })));
    }
}
