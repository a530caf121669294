//! Tensors and JSON, read and compared so that a failure names what is off.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use serde_json::Value;

use super::Outcome;

/// How far a value may be off, by the value itself and the tensor's largest.
pub type Allowed = fn(f32, f32) -> f32;

/// 1e-4 absolute and relative.
pub fn of_each(expected: f32, _: f32) -> f32 {
    1e-4 + 1e-4 * expected.abs()
}

/// 1e-3 of the tensor's largest entry: AdamW divides by small numbers.
pub fn of_largest(_: f32, largest: f32) -> f32 {
    1e-3 * largest
}

pub fn tensors(bytes: &[u8]) -> Outcome<SafeTensors<'_>> {
    SafeTensors::deserialize(bytes).map_err(|e| e.to_string())
}

/// The values of an f32 tensor, and its shape.
pub fn floats(file: &SafeTensors<'_>, name: &str) -> Outcome<(Vec<f32>, Vec<usize>)> {
    let view = file.tensor(name).map_err(|_| format!("{name} is not among the expected tensors"))?;
    let values = view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    Ok((values, view.shape().to_vec()))
}

/// The values of an i64 tensor, and its shape.
pub fn ints(file: &SafeTensors<'_>, name: &str) -> Outcome<(Vec<i64>, Vec<usize>)> {
    let view = file.tensor(name).map_err(|_| format!("{name} is not among the expected tensors"))?;
    let values = view.data().as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
    Ok((values, view.shape().to_vec()))
}

/// Types and shapes by key. PEFT copies the frozen weights of adapted embeddings (`base_layer`) along; we do not.
pub fn shapes(bytes: &[u8]) -> Outcome<BTreeMap<String, String>> {
    let file = tensors(bytes)?;
    let trained = file.iter().filter(|(name, _)| !name.contains(".base_layer."));
    Ok(trained
        .map(|(name, view)| (name.to_owned(), format!("{:?} {:?}", view.dtype(), view.shape())))
        .collect())
}

/// The configuration's fields; lists of names are sets.
pub fn fields(json: &[u8]) -> Outcome<serde_json::Map<String, Value>> {
    let Value::Object(mut fields) = serde_json::from_slice(json).map_err(|e| e.to_string())? else {
        return Err("adapter_config.json is not an object".to_owned());
    };
    for key in ["target_modules", "exclude_modules", "modules_to_save"] {
        if let Some(Value::Array(names)) = fields.get_mut(key) {
            names.sort_by_key(Value::to_string);
            names.dedup();
        }
    }
    Ok(fields)
}

/// Compares two maps; the message names the first key that differs.
pub fn same<V: PartialEq + std::fmt::Debug>(
    name: &str,
    ours: &impl Lookup<V>,
    theirs: &impl Lookup<V>,
) -> Outcome {
    for key in ours.names().into_iter().chain(theirs.names()) {
        if ours.value(&key) != theirs.value(&key) {
            return Err(format!("{name}: {key} is {:?}, PEFT's {:?}", ours.value(&key), theirs.value(&key)));
        }
    }
    Ok(())
}

/// What maps by name have in common.
pub trait Lookup<V> {
    fn names(&self) -> Vec<String>;
    fn value(&self, key: &str) -> Option<&V>;
}

impl<V> Lookup<V> for BTreeMap<String, V> {
    fn names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }
    fn value(&self, key: &str) -> Option<&V> {
        self.get(key)
    }
}

impl Lookup<Value> for serde_json::Map<String, Value> {
    fn names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }
    fn value(&self, key: &str) -> Option<&Value> {
        self.get(key)
    }
}

pub fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

/// Compares two tensors; the message names the worst element.
pub fn close(name: &str, ours: &[f32], theirs: &[f32], allowed: impl Fn(f32) -> f32) -> Outcome {
    if ours.len() != theirs.len() {
        return Err(format!("{name} has {} values, {} are expected", ours.len(), theirs.len()));
    }
    let excess = |i: usize| {
        let off = (ours[i] - theirs[i]).abs() / allowed(theirs[i]).max(f32::MIN_POSITIVE);
        if off.is_nan() { f32::INFINITY } else { off }
    };
    let worst = (0..ours.len()).max_by(|&a, &b| excess(a).total_cmp(&excess(b)));
    match worst {
        Some(i) if excess(i) > 1.0 => Err(format!(
            "{name}[{i}] is {}, {} expected (allowed ±{:e}, {} of {} values are off)",
            ours[i],
            theirs[i],
            allowed(theirs[i]),
            (0..ours.len()).filter(|&i| excess(i) > 1.0).count(),
            ours.len(),
        )),
        _ => Ok(()),
    }
}
