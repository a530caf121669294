//! Writes the merged weights, slab after slab.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::Path;

use half::{bf16, f16};
use lorafleet_spec::base::Dtype;
use serde_json::{Map, Value, json};

use super::plan::{Change, Item, Kind, Plan, Source};
use super::{MergeError, Merged, Progress, io};

/// Values of a slab: 16 MB in f32.
const SLAB: usize = 4 << 20;

/// Writes every file of weights, and the index of several.
pub(super) fn weights(
    plan: &Plan,
    base: &Path,
    out: &Path,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Merged, MergeError> {
    let mut merged = Merged { untied: plan.untied, ..Merged::default() };
    let (total, mut done) = (plan.bytes(), 0);
    for (name, items) in &plan.files {
        let path = out.join(name);
        let file = File::create_new(&path).map_err(io(&path))?;
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        writer.write_all(&header(items)).map_err(io(&path))?;
        for item in items {
            let mut tensor = Tensor::open(item, base)?;
            let buffered = tensor.write(&mut |bytes| writer.write_all(bytes).map_err(io(&path)))?;
            merged.most_buffered = merged.most_buffered.max(buffered);
            match item.change {
                Change::Copy => merged.copied += 1,
                _ => merged.changed += 1,
            }
            done += item.bytes();
            if progress(Progress { tensor: &item.name, done, total }).is_break() {
                return Err(MergeError::BrokenOff);
            }
        }
        let file = writer.into_inner().map_err(|error| io(&path)(error.into_error()))?;
        file.sync_all().map_err(io(&path))?;
    }
    if plan.files.len() > 1 {
        let path = out.join("model.safetensors.index.json");
        std::fs::write(&path, index(plan)).map_err(io(&path))?;
    }
    Ok(merged)
}

/// A safetensors header: its length, then JSON that is padded to eight bytes.
fn header(items: &[Item]) -> Vec<u8> {
    let mut entries = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    let mut at = 0;
    for item in items {
        let end = at + item.bytes();
        let entry = json!({ "dtype": item.to.word(), "shape": item.shape, "data_offsets": [at, end] });
        entries.insert(item.name.clone(), entry);
        at = end;
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    header
}

fn index(plan: &Plan) -> String {
    let names = plan.files.iter().flat_map(|(file, items)| items.iter().map(move |item| (file, item)));
    let map: Map<String, Value> = names.map(|(file, item)| (item.name.clone(), json!(file))).collect();
    let index = json!({ "metadata": { "total_size": plan.bytes() }, "weight_map": map });
    format!("{index:#}\n")
}

/// One tensor of the result on its way.
struct Tensor<'p, 'a> {
    item: &'p Item<'a>,
    file: Option<File>,
    path: std::path::PathBuf,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

/// Where bytes go.
type Sink<'s> = dyn FnMut(&[u8]) -> Result<(), MergeError> + 's;

impl<'p, 'a> Tensor<'p, 'a> {
    fn open(item: &'p Item<'a>, base: &Path) -> Result<Self, MergeError> {
        let mut path = base.to_owned();
        let file = match &item.source {
            Source::File { file, .. } => {
                path.push(file);
                Some(File::open(&path).map_err(io(&path))?)
            }
            Source::Nowhere => None,
        };
        Ok(Self { item, file, path, bytes: Vec::new(), values: Vec::new() })
    }

    /// Writes it; returns the bytes of its buffers.
    fn write(&mut self, sink: &mut Sink) -> Result<usize, MergeError> {
        match (&self.item.change, &self.item.source, &self.item.to) {
            (Change::Replace(values), _, Kind::Number(dtype)) => {
                for values in values.chunks(SLAB) {
                    self.encode_into(values, *dtype)?;
                    sink(&self.bytes)?;
                }
            }
            (Change::Add(delta), Source::File { kind: Kind::Number(from), .. }, Kind::Number(to)) => {
                let columns = delta.columns();
                let mut sums = vec![0.0; if delta.needs_norms() { columns } else { 0 }];
                if delta.needs_norms() {
                    self.slabs(columns, *from, |_, first, rows| {
                        delta.add_squares(first, rows, &mut sums);
                        Ok(())
                    })?;
                }
                self.slabs(columns, *from, |tensor, first, rows| {
                    delta.apply(first, rows, &sums);
                    tensor.encode_into(rows, *to)?;
                    sink(&tensor.bytes)
                })?;
            }
            (_, Source::File { kind: Kind::Number(from), .. }, Kind::Number(to)) if from != to => {
                self.slabs(1, *from, |tensor, _, values| {
                    tensor.encode_into(values, *to)?;
                    sink(&tensor.bytes)
                })?;
            }
            _ => self.copy(sink)?,
        }
        Ok(self.bytes.capacity() + 4 * self.values.capacity())
    }

    fn copy(&mut self, sink: &mut Sink) -> Result<(), MergeError> {
        let Source::File { range, .. } = self.item.source else { return Ok(()) };
        let mut left = range.1 - range.0;
        self.seek(range.0)?;
        while left > 0 {
            let n = left.min(4 * SLAB as u64);
            self.read(n as usize)?;
            sink(&self.bytes)?;
            left -= n;
        }
        Ok(())
    }

    /// Calls `f(self, first row, rows)` for slabs of whole rows, in order.
    fn slabs(
        &mut self,
        columns: usize,
        dtype: Dtype,
        mut f: impl FnMut(&mut Self, usize, &mut [f32]) -> Result<(), MergeError>,
    ) -> Result<(), MergeError> {
        let Source::File { range, .. } = self.item.source else { return Ok(()) };
        let rows = self.item.shape.iter().product::<usize>() / columns.max(1);
        let most = (SLAB / columns.max(1)).max(1);
        self.seek(range.0)?;
        for first in (0..rows).step_by(most) {
            let n = most.min(rows - first);
            self.read(n * columns * dtype.bytes() as usize)?;
            let mut values = std::mem::take(&mut self.values);
            decode(&self.bytes, dtype, &mut values);
            f(self, first, &mut values)?;
            self.values = values;
        }
        Ok(())
    }

    fn seek(&mut self, at: u64) -> Result<(), MergeError> {
        let file = self.file.as_mut().expect("a tensor with bytes has a file");
        file.seek(SeekFrom::Start(at)).map(drop).map_err(io(&self.path))
    }

    fn read(&mut self, len: usize) -> Result<(), MergeError> {
        let file = self.file.as_mut().expect("a tensor with bytes has a file");
        self.bytes.resize(len, 0);
        file.read_exact(&mut self.bytes).map_err(io(&self.path))
    }

    /// Values as bytes of the type, rounded to the nearest.
    fn encode_into(&mut self, values: &[f32], dtype: Dtype) -> Result<(), MergeError> {
        self.bytes.clear();
        let mut worst = None;
        for &value in values {
            let back = match dtype {
                Dtype::F32 => {
                    self.bytes.extend(value.to_le_bytes());
                    value
                }
                Dtype::F16 => {
                    self.bytes.extend(f16::from_f32(value).to_le_bytes());
                    f16::from_f32(value).to_f32()
                }
                Dtype::Bf16 => {
                    self.bytes.extend(bf16::from_f32(value).to_le_bytes());
                    bf16::from_f32(value).to_f32()
                }
            };
            if !back.is_finite() {
                worst = Some(value);
            }
        }
        match worst {
            Some(value) => Err(MergeError::Value { tensor: self.item.name.clone(), dtype, value }),
            None => Ok(()),
        }
    }
}

fn decode(bytes: &[u8], dtype: Dtype, values: &mut Vec<f32>) {
    values.clear();
    match dtype {
        Dtype::F32 => values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
        Dtype::F16 => values.extend(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
        Dtype::Bf16 => values.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
    }
}
