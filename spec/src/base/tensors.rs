//! Headers of safetensors files: which tensors they hold, and whether they hold all that a model needs.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::{BaseError, TensorEntry};

/// Bytes that a header may have; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// The header of one safetensors file.
#[derive(Debug, Clone)]
pub struct TensorFile {
    /// The file's name within the base's folder.
    pub name: String,
    /// The header's JSON.
    pub header: String,
    /// Bytes of the whole file.
    pub file_bytes: u64,
}

/// Types of numbers that weights may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit floating point.
    F32,
    /// IEEE 16-bit floating point.
    F16,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// Bytes of one number.
    pub fn bytes(self) -> u64 {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

/// Bytes of the JSON header that follows a safetensors file's first 8 bytes.
///
/// # Errors
/// What is wrong with the file's beginning.
pub fn header_len(first: [u8; 8], file_bytes: u64) -> Result<u64, String> {
    let len = u64::from_le_bytes(first);
    if len > MAX_HEADER {
        return Err("does not begin like a safetensors file".to_owned());
    }
    if len + 8 > file_bytes {
        return Err(format!("is truncated: its header needs {} bytes, it has {file_bytes}", len + 8));
    }
    Ok(len)
}

/// One entry of a header.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// A tensor that a model has.
pub(super) struct Wanted {
    /// What the task's class calls it.
    pub name: String,
    /// What files may call it; the first that is there counts.
    pub stored: Vec<String>,
    /// Its shape as stored.
    pub shape: Vec<usize>,
    /// It may be absent: a head that is yet to be trained.
    pub optional: bool,
}

/// What the files have of a model.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    /// Tensors by the name that the task's class has for them.
    pub tensors: BTreeMap<String, TensorEntry>,
    /// Optional tensors that the files do not have.
    pub absent: Vec<String>,
}

/// Finds every wanted tensor in the files.
pub(super) fn inventory(files: &[TensorFile], wanted: &[Wanted]) -> Result<Inventory, BaseError> {
    let mut damaged = Vec::new();
    let mut found = HashMap::new();
    for file in files {
        let weights = |message: String| BaseError::Weights { file: file.name.clone(), message };
        match entries(file) {
            Ok(entries) => {
                for (name, entry) in entries {
                    if found.insert(name.clone(), (file, entry)).is_some() {
                        damaged.push(weights(format!("holds {name}, which another file holds too")));
                    }
                }
            }
            Err(message) => damaged.push(weights(message)),
        }
    }
    // Where a file is damaged, the tensors in it are not missing as well.
    let (inventory, problems) = pick(&found, wanted);
    if damaged.is_empty() && !problems.is_empty() {
        damaged.push(BaseError::Tensors(problems));
    }
    match damaged.len() {
        0 => Ok(inventory),
        1 => Err(damaged.remove(0)),
        _ => Err(BaseError::Many(damaged)),
    }
}

fn pick(found: &HashMap<String, (&TensorFile, Entry)>, wanted: &[Wanted]) -> (Inventory, Vec<String>) {
    let (mut inventory, mut problems) = (Inventory::default(), Vec::new());
    for Wanted { name, stored, shape, optional } in wanted {
        let Some((stored, (file, entry))) = stored.iter().find_map(|stored| found.get_key_value(stored))
        else {
            if *optional {
                inventory.absent.push(name.clone());
            } else {
                problems.push(format!("{name} {shape:?} is missing"));
            }
            continue;
        };
        match check(file, stored, entry, shape) {
            Ok(tensor) => drop(inventory.tensors.insert(name.clone(), tensor)),
            Err(message) => problems.push(format!("{stored} {message}")),
        }
    }
    (inventory, problems)
}

fn check(file: &TensorFile, stored: &str, entry: &Entry, wanted: &[usize]) -> Result<TensorEntry, String> {
    if !entry.shape.iter().copied().eq(wanted.iter().map(|n| *n as u64)) {
        return Err(format!("has the shape {:?}, not {wanted:?}", entry.shape));
    }
    let dtype = match entry.dtype.as_str() {
        "F32" => Dtype::F32,
        "F16" => Dtype::F16,
        "BF16" => Dtype::Bf16,
        other => return Err(format!("has the type {other}; known are F32, F16, BF16")),
    };
    let bytes = wanted.iter().map(|n| *n as u64).product::<u64>() * dtype.bytes();
    let data = 8 + file.header.len() as u64;
    let (start, end) = entry.data_offsets;
    if end.checked_sub(start) != Some(bytes) {
        return Err(format!("has the bytes {start} to {end}; its shape and type need {bytes}"));
    }
    Ok(TensorEntry {
        stored: stored.to_owned(),
        file: file.name.clone(),
        dtype,
        shape: wanted.to_vec(),
        range: (data + start, data + end),
    })
}

/// The entries of a header, none of which ends behind the file.
fn entries(file: &TensorFile) -> Result<Vec<(String, Entry)>, String> {
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&file.header)
        .map_err(|error| format!("has a header that is no JSON object ({error}); the file is damaged"))?;
    let mut entries = Vec::with_capacity(header.len());
    let mut end = 0;
    for (name, value) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let entry: Entry = serde_json::from_value(value)
            .map_err(|error| format!("has a damaged entry for {name}: {error}"))?;
        end = end.max(entry.data_offsets.1);
        entries.push((name, entry));
    }
    let needed = (8 + file.header.len() as u64).saturating_add(end);
    if file.file_bytes < needed {
        return Err(format!(
            "is truncated: its tensors need {needed} bytes, it has {}; copy or download it again",
            file.file_bytes
        ));
    }
    Ok(entries)
}
