//! The optimizer's state ⇄ the bytes of `optimizer.safetensors`, the same bytes for the same state.

use std::collections::{BTreeSet, HashMap};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::state::{Buffer, Piece, State, StatePlan};
use crate::adapter::{AdapterError, OPTIMIZER_FILE};
use crate::exact::SCALE_BITS;
use crate::tensor_file::{Tensor, TensorFile, Values};

/// A number that is kept beside the buffers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// A count.
    Integer(i64),
    /// A measure.
    Real(f64),
}

/// `optimizer.safetensors`: each buffer's tensors as `buffer/key`, the step, the scale of exact sums, and the caller's
/// numbers. The weights are in a file of their own.
pub fn write<'a>(plan: &StatePlan, state: &'a State, more: &[(&str, Scalar)]) -> TensorFile<'a> {
    fn tensors<'a, T>(
        buffers: &[Buffer],
        values: &'a [Vec<T>],
        stored: impl Fn(&'a [T]) -> Values<'a> + Copy,
    ) -> impl Iterator<Item = Tensor<'a>> {
        buffers.iter().zip(values).flat_map(move |(buffer, values)| {
            buffer.pieces.iter().map(move |piece| Tensor {
                name: key(buffer, piece),
                shape: piece.shape.clone(),
                values: stored(&values[piece.place.clone()]),
            })
        })
    }
    let fixed =
        [("scale_bits", Scalar::Integer(SCALE_BITS.into())), ("step", Scalar::Integer(state.step as i64))];
    let scalar = |(name, value): &(&str, Scalar)| {
        let values = match *value {
            Scalar::Integer(value) => Values::Integer(value),
            Scalar::Real(value) => Values::Real(value),
        };
        Tensor { name: (*name).to_owned(), shape: vec![1], values }
    };
    let all = tensors(&plan.floats, &state.floats, Values::Floats)
        .chain(tensors(&plan.codes, &state.codes, Values::Codes))
        .chain(fixed.iter().chain(more).map(scalar));
    TensorFile::new(all.collect())
}

/// Reads `optimizer.safetensors` into a state, whose weights are left alone; gives the numbers that the plan does not
/// know, by name.
///
/// # Errors
/// When the file is damaged, its tensors are not exactly those of the plan, or its exact sums had another scale.
pub fn read(
    plan: &StatePlan,
    bytes: &[u8],
    state: &mut State,
) -> Result<HashMap<String, Scalar>, AdapterError> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| AdapterError::Safetensors { file: OPTIMIZER_FILE, message: error.to_string() })?;
    let mut reader = Reader { unread: file.names().into_iter().collect(), file: &file, problems: Vec::new() };
    for (buffer, values) in plan.floats.iter().zip(&mut state.floats) {
        reader.fill(buffer, Dtype::F32, values, |to, bytes| {
            for (to, bytes) in to.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *to = f32::from_le_bytes(*bytes);
            }
            to.iter().all(|value| value.is_finite())
        });
    }
    for (buffer, values) in plan.codes.iter().zip(&mut state.codes) {
        reader.fill(buffer, Dtype::U8, values, |to, bytes| {
            to.copy_from_slice(bytes);
            true
        });
    }
    let mut scalars = reader.scalars();
    match scalars.remove("scale_bits") {
        Some(Scalar::Integer(bits)) if bits == i64::from(SCALE_BITS) => {}
        Some(Scalar::Integer(bits)) => {
            reader.problems.push(format!("its sums have the scale 2^{bits}, this build's 2^{SCALE_BITS}"));
        }
        _ => reader.problems.push("scale_bits is missing".to_owned()),
    }
    match scalars.remove("step") {
        Some(Scalar::Integer(step)) if step >= 0 => state.step = step as u64,
        _ => reader.problems.push("step is not a number of steps".to_owned()),
    }
    reader.finish()?;
    Ok(scalars)
}

fn key(buffer: &Buffer, piece: &Piece) -> String {
    format!("{}/{}", buffer.name, piece.key)
}

/// Reads tensors by name and gathers what is wrong, to say it all at once.
struct Reader<'a> {
    file: &'a SafeTensors<'a>,
    unread: BTreeSet<&'a str>,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn fill<T>(
        &mut self,
        buffer: &Buffer,
        dtype: Dtype,
        values: &mut [T],
        copy: impl Fn(&mut [T], &[u8]) -> bool,
    ) {
        for piece in &buffer.pieces {
            let key = key(buffer, piece);
            self.unread.remove(key.as_str());
            let Ok(view) = self.file.tensor(&key) else {
                self.problems.push(format!("{key} is missing"));
                continue;
            };
            if view.dtype() != dtype || view.shape() != piece.shape {
                let (shape, found) = (&piece.shape, (view.dtype(), view.shape()));
                self.problems.push(format!("{key} is {:?} {:?}, not {dtype:?} {shape:?}", found.0, found.1));
            } else if !copy(&mut values[piece.place.clone()], view.data()) {
                self.problems.push(format!("{key} has values that are not finite"));
            }
        }
    }

    /// Every tensor of one number, which no buffer has.
    fn scalars(&mut self) -> HashMap<String, Scalar> {
        let scalar = |view: &TensorView<'_>| {
            let bytes = <[u8; 8]>::try_from(view.data()).ok()?;
            match view.dtype() {
                Dtype::I64 => Some(Scalar::Integer(i64::from_le_bytes(bytes))),
                Dtype::F64 => Some(Scalar::Real(f64::from_le_bytes(bytes))),
                _ => None,
            }
        };
        let found: Vec<(&str, Scalar)> = self
            .unread
            .iter()
            .filter_map(|name| Some((*name, scalar(&self.file.tensor(name).ok()?)?)))
            .collect();
        for (name, _) in &found {
            self.unread.remove(name);
        }
        found.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn finish(mut self) -> Result<(), AdapterError> {
        const SHOWN: usize = 6;
        self.problems.extend(self.unread.iter().map(|key| format!("{key} is not expected")));
        if self.problems.is_empty() {
            return Ok(());
        }
        let mut problems = self.problems.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
        if self.problems.len() > SHOWN {
            problems += &format!("; and {} more", self.problems.len() - SHOWN);
        }
        Err(AdapterError::Tensors { file: OPTIMIZER_FILE, problems })
    }
}
