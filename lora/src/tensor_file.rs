//! A safetensors file that is made piece by piece: a large state is never in memory once more as bytes.

use std::collections::HashMap;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

/// Bytes of one piece at most.
const PIECE: usize = 1 << 20;

/// Values of one tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Values<'a> {
    /// Numbers of 32 bits.
    Floats(&'a [f32]),
    /// Bytes.
    Codes(&'a [u8]),
    /// One count.
    Integer(i64),
    /// One measure.
    Real(f64),
}

impl Values<'_> {
    fn dtype(self) -> Dtype {
        match self {
            Values::Floats(_) => Dtype::F32,
            Values::Codes(_) => Dtype::U8,
            Values::Integer(_) => Dtype::I64,
            Values::Real(_) => Dtype::F64,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Values::Floats(values) => 4 * values.len(),
            Values::Codes(codes) => codes.len(),
            Values::Integer(_) | Values::Real(_) => 8,
        }
    }

    /// Appends values from the byte `from` on, as many as there is room for in the piece; how many bytes those were.
    /// A value is never cut in two.
    fn append(self, from: usize, piece: &mut Vec<u8>) -> usize {
        let room = PIECE - piece.len();
        let before = piece.len();
        match self {
            Values::Floats(values) => {
                let values = &values[from / 4..];
                let values = &values[..values.len().min(room / 4)];
                piece.resize(before + 4 * values.len(), 0);
                for (to, value) in piece[before..].as_chunks_mut::<4>().0.iter_mut().zip(values) {
                    *to = value.to_le_bytes();
                }
            }
            Values::Codes(codes) => {
                let codes = &codes[from..];
                piece.extend_from_slice(&codes[..codes.len().min(room)]);
            }
            Values::Integer(value) if room >= 8 => piece.extend_from_slice(&value.to_le_bytes()),
            Values::Real(value) if room >= 8 => piece.extend_from_slice(&value.to_le_bytes()),
            Values::Integer(_) | Values::Real(_) => {}
        }
        piece.len() - before
    }
}

/// One tensor of a file.
#[derive(Clone, Debug)]
pub(crate) struct Tensor<'a> {
    /// Its name there.
    pub name: String,
    /// Its shape; as many values.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Values<'a>,
}

/// A safetensors file; the same bytes for the same tensors, in whatever order they were given.
#[derive(Clone, Debug)]
pub struct TensorFile<'a> {
    header: Vec<u8>,
    tensors: Vec<Values<'a>>,
    size: u64,
}

impl<'a> TensorFile<'a> {
    /// The file of these tensors, whose names are unique.
    pub(crate) fn new(mut tensors: Vec<Tensor<'a>>) -> Self {
        // The order of the safetensors library: so that every tensor is aligned.
        tensors.sort_by(|a, b| b.values.dtype().cmp(&a.values.dtype()).then_with(|| a.name.cmp(&b.name)));
        let mut end = 0;
        let info = |Tensor { name, shape, values }: &Tensor<'_>| {
            let start = end;
            end += values.bytes();
            let (dtype, data_offsets) = (values.dtype(), (start, end));
            (name.clone(), TensorInfo { dtype, shape: shape.clone(), data_offsets })
        };
        let infos = tensors.iter().map(info).collect();
        // One metadata entry, so that its order is one too.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let metadata = Metadata::new(Some(metadata), infos).expect("sizes are consistent");
        let mut text = serde_json::to_vec(&metadata).expect("names and numbers have a JSON form");
        text.resize(text.len().next_multiple_of(8), b' ');
        let header = [&(text.len() as u64).to_le_bytes(), text.as_slice()].concat();
        let size = (header.len() + end) as u64;
        Self { header, tensors: tensors.into_iter().map(|tensor| tensor.values).collect(), size }
    }

    /// Bytes of the whole file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The file from its start, in pieces of at most 1 MiB.
    pub fn pieces(&self) -> Pieces<'_> {
        let header = Values::Codes(&self.header);
        Pieces { rest: &self.tensors, now: header, from: 0 }
    }

    /// The whole file at once.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.size as usize);
        self.pieces().for_each(|piece| bytes.extend_from_slice(&piece));
        bytes
    }
}

/// The pieces of a [`TensorFile`].
#[derive(Debug)]
pub struct Pieces<'a> {
    /// What comes after `now`.
    rest: &'a [Values<'a>],
    now: Values<'a>,
    /// Bytes of `now` that were given.
    from: usize,
}

impl Iterator for Pieces<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut piece = Vec::with_capacity(PIECE);
        loop {
            while self.from == self.now.bytes() {
                let Some((next, rest)) = self.rest.split_first() else {
                    return (!piece.is_empty()).then_some(piece);
                };
                (self.now, self.rest, self.from) = (*next, rest, 0);
            }
            let appended = self.now.append(self.from, &mut piece);
            self.from += appended;
            if appended == 0 || piece.len() == PIECE {
                return Some(piece);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    /// As the safetensors library writes them.
    fn by_the_library(tensors: &[Tensor<'_>]) -> Vec<u8> {
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|tensor| match tensor.values {
                Values::Floats(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                Values::Codes(codes) => codes.to_vec(),
                Values::Integer(value) => value.to_le_bytes().to_vec(),
                Values::Real(value) => value.to_le_bytes().to_vec(),
            })
            .collect();
        let views = tensors.iter().zip(&bytes).map(|(tensor, bytes)| {
            let view = TensorView::new(tensor.values.dtype(), tensor.shape.clone(), bytes).unwrap();
            (tensor.name.clone(), view)
        });
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize(views, Some(metadata)).unwrap()
    }

    #[test]
    fn its_bytes_are_the_librarys() {
        let many: Vec<f32> = (0..PIECE).map(|i| i as f32 * 0.5).collect();
        let codes: Vec<u8> = (0..PIECE + 3).map(|i| i as u8).collect();
        let tensor =
            |name: &str, shape: &[usize], values| Tensor { name: name.into(), shape: shape.into(), values };
        let tensors = [
            tensor("b/many", &[4, PIECE / 4], Values::Floats(&many)),
            tensor("step", &[1], Values::Integer(-7)),
            tensor("a/few \"quoted\"", &[3], Values::Floats(&many[5..8])),
            tensor("codes", &[codes.len()], Values::Codes(&codes)),
            tensor("none", &[0], Values::Floats(&[])),
            tensor("best", &[1], Values::Real(0.25)),
        ];
        let file = TensorFile::new(tensors.to_vec());
        let expected = by_the_library(&tensors);
        assert!(file.to_vec() == expected);
        assert_eq!(file.size(), expected.len() as u64);
        let pieces: Vec<usize> = file.pieces().map(|piece| piece.len()).collect();
        assert!(pieces.len() >= 5 && pieces.iter().all(|&size| size > 0 && size <= PIECE), "{pieces:?}");
        // Again from the start, as often as a try needs it.
        assert!(file.pieces().flatten().eq(expected));
        assert!(TensorFile::new(Vec::new()).to_vec() == by_the_library(&[]));
    }
}
