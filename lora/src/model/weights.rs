//! Reads a base's tensors from its safetensors files by memory map, as f32.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use half::{bf16, f16};
use lorafleet_spec::BaseShape;
use lorafleet_spec::base::{Dtype, TensorEntry};
use memmap2::Mmap;

use super::ModelError;

/// The open files of a base, whose headers were checked when its shape was read.
pub(crate) struct Weights<'a> {
    shape: &'a BaseShape,
    files: HashMap<&'a str, Mmap>,
}

impl<'a> Weights<'a> {
    /// Maps every file that holds a tensor of the base.
    pub fn open(dir: &Path, shape: &'a BaseShape) -> Result<Self, ModelError> {
        Self::map(dir, shape, shape.tensors.values())
    }

    /// Maps the file that holds one tensor.
    pub fn open_one(dir: &Path, shape: &'a BaseShape, name: &str) -> Result<Self, ModelError> {
        Self::map(dir, shape, shape.tensors.get(name))
    }

    fn map(
        dir: &Path,
        shape: &'a BaseShape,
        entries: impl IntoIterator<Item = &'a TensorEntry>,
    ) -> Result<Self, ModelError> {
        let mut files = HashMap::new();
        for entry in entries {
            if files.contains_key(entry.file.as_str()) {
                continue;
            }
            let path = dir.join(&entry.file);
            let io = |source| ModelError::File { path: path.clone(), source };
            let file = File::open(&path).map_err(io)?;
            // SAFETY: a base's files are never written while they are in use: they are named by their digest, or belong
            // to the user, who is told that a base is read when it is loaded.
            let map = unsafe { Mmap::map(&file) }.map_err(io)?;
            files.insert(entry.file.as_str(), map);
        }
        Ok(Self { shape, files })
    }

    /// A tensor's values, row-major as stored; zeros for one of a new head, which whoever trains it draws.
    pub fn read(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let problem =
            |message: &str| ModelError::Tensor { name: name.to_owned(), message: message.to_owned() };
        if self.shape.fresh.iter().any(|fresh| fresh == name) {
            let shapes = self.shape.parameter_shapes();
            let shape = shapes.iter().find(|(tensor, _)| tensor == name);
            let (_, shape) = shape.ok_or_else(|| problem("is not one of the base's"))?;
            return Ok(vec![0.0; shape.iter().product()]);
        }
        let entry = self.shape.tensors.get(name).ok_or_else(|| problem("is not in the base's files"))?;
        let file =
            self.files.get(entry.file.as_str()).ok_or_else(|| problem("lies in a file that is not open"))?;
        let (start, end) = (entry.range.0 as usize, entry.range.1 as usize);
        let bytes = file
            .get(start..end)
            .ok_or_else(|| problem("lies behind the end of its file: it was truncated"))?;
        let values = decode(bytes, entry.dtype);
        if values.len() != entry.shape.iter().product::<usize>() {
            return Err(problem("has fewer bytes than its shape needs"));
        }
        Ok(values)
    }
}

/// Little-endian numbers as f32, which holds each of these types exactly.
fn decode(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::Bf16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_becomes_f32() {
        let values = [1.5f32, -0.25, 3.0];
        let f32s: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let f16s: Vec<u8> = values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        let bf16s: Vec<u8> = values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
        assert_eq!(decode(&f32s, Dtype::F32), values);
        assert_eq!(decode(&f16s, Dtype::F16), values);
        assert_eq!(decode(&bf16s, Dtype::Bf16), values);
    }
}
