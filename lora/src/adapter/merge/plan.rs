//! Which tensor of the result comes from where, and into which file it goes.

use std::collections::BTreeMap;
use std::path::Path;

use lorafleet_spec::base::{
    BaseShape, Dtype, EmbeddingRole, Role, TensorFile, read_tensor_file, weight_files,
};
use serde_json::Value;

use super::MergeError;
use super::delta::Delta;
use crate::adapter::Adapter;

/// One tensor of the result.
pub(super) struct Item<'a> {
    /// Its name, as the task's class has it; of one that the model does not use, the file's.
    pub name: String,
    pub shape: Vec<usize>,
    /// What is written; bytes of a type that is not known are copied.
    pub to: Kind,
    pub source: Source,
    pub change: Change<'a>,
}

/// A number type, by the word of the safetensors header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Number(Dtype),
    Other(String),
}

/// Where the tensor lies in the base.
pub(super) enum Source {
    /// Bytes of a file.
    File { file: String, kind: Kind, range: (u64, u64) },
    /// It is new.
    Nowhere,
}

/// What becomes of the tensor.
pub(super) enum Change<'a> {
    Copy,
    Add(Delta<'a>),
    /// These values take its place.
    Replace(&'a [f32]),
}

/// The files of the result with their tensors in order.
pub(super) struct Plan<'a> {
    pub files: Vec<(String, Vec<Item<'a>>)>,
    /// Whether a tied head becomes a tensor of its own.
    pub untied: bool,
    /// Classes of a classifier.
    pub labels: Option<usize>,
}

impl<'a> Plan<'a> {
    pub fn new(
        base: &Path,
        shape: &BaseShape,
        adapter: &'a Adapter,
        dtype: Option<Dtype>,
    ) -> Result<Self, MergeError> {
        // Stored name → the class's.
        let names: BTreeMap<(&str, &str), &str> = shape
            .tensors
            .iter()
            .map(|(name, entry)| ((entry.file.as_str(), entry.stored.as_str()), name.as_str()))
            .collect();
        let mut files = Vec::new();
        for path in weight_files(base)? {
            let file = read_tensor_file(&path)?;
            let mut items = Vec::new();
            for entry in entries(&file)? {
                let name = names.get(&(file.name.as_str(), entry.stored.as_str()));
                let change = name.map_or(Change::Copy, |name| change(name, shape, adapter));
                let name = name.map_or(entry.stored.clone(), |name| (*name).to_owned());
                items.push(entry.into_item(name, change, dtype));
            }
            files.push((file.name, items));
        }
        let mut plan = Self { files, untied: false, labels: None };
        plan.add_head(shape, adapter, dtype);
        plan.add_new(shape, adapter, dtype);
        if let lorafleet_spec::base::HeadShape::Classifier { labels, .. } = shape.head {
            plan.labels = Some(labels);
        }
        Ok(plan)
    }

    /// The head of a base that ties it, where head or embedding is adapted alone.
    fn add_head(&mut self, shape: &BaseShape, adapter: &'a Adapter, dtype: Option<Dtype>) {
        let head = shape.linears.iter().find(|linear| linear.role == Role::Head);
        let tokens = shape.embedding_at(EmbeddingRole::Tokens);
        let Some((head, tokens)) = head.zip(tokens).filter(|_| shape.tied) else { return };
        let head_delta = Delta::of(adapter, &head.name, false);
        if head_delta.is_none() && adapter.layout.find(&tokens.name).is_none() {
            return;
        }
        let Some(entry) = shape.tensors.get(&format!("{}.weight", tokens.name)) else { return };
        self.untied = true;
        let kind = Kind::Number(entry.dtype);
        self.push(Item {
            name: format!("{}.weight", head.name),
            shape: entry.shape.clone(),
            to: dtype.map_or(kind.clone(), Kind::Number),
            source: Source::File { file: entry.file.clone(), kind, range: entry.range },
            change: head_delta.map_or(Change::Copy, Change::Add),
        });
    }

    /// Whole tensors that the base does not have.
    fn add_new(&mut self, shape: &BaseShape, adapter: &'a Adapter, dtype: Option<Dtype>) {
        // As most of the base's numbers are.
        let common = shape.tensors.values().next().map_or(Dtype::F32, |entry| entry.dtype);
        for tensor in adapter.layout.whole() {
            if !shape.tensors.contains_key(&tensor.name) {
                self.push(Item {
                    name: tensor.name.clone(),
                    shape: tensor.shape.clone(),
                    to: Kind::Number(dtype.unwrap_or(common)),
                    source: Source::Nowhere,
                    change: Change::Replace(&adapter.weights[tensor.place.clone()]),
                });
            }
        }
    }

    fn push(&mut self, item: Item<'a>) {
        if let Some((_, items)) = self.files.last_mut() {
            items.push(item);
        }
    }

    /// Bytes of all weights of the result.
    pub fn bytes(&self) -> u64 {
        self.files.iter().flat_map(|(_, items)| items).map(Item::bytes).sum()
    }
}

fn change<'a>(name: &str, shape: &BaseShape, adapter: &'a Adapter) -> Change<'a> {
    if let Some(tensor) = adapter.layout.find_whole(name) {
        return Change::Replace(&adapter.weights[tensor.place.clone()]);
    }
    let Some(module) = name.strip_suffix(".weight") else { return Change::Copy };
    let embedding = shape.embeddings.iter().any(|embedding| embedding.name == module);
    let conv1d = shape.linear(module).is_some_and(|linear| linear.conv1d);
    Delta::of(adapter, module, embedding || conv1d).map_or(Change::Copy, Change::Add)
}

impl Kind {
    /// The word of the safetensors header.
    pub fn word(&self) -> &str {
        match self {
            Kind::Number(Dtype::F32) => "F32",
            Kind::Number(Dtype::F16) => "F16",
            Kind::Number(Dtype::Bf16) => "BF16",
            Kind::Other(word) => word,
        }
    }

    fn of(word: &str) -> Self {
        match word {
            "F32" => Kind::Number(Dtype::F32),
            "F16" => Kind::Number(Dtype::F16),
            "BF16" => Kind::Number(Dtype::Bf16),
            other => Kind::Other(other.to_owned()),
        }
    }
}

impl Item<'_> {
    /// Bytes in the result.
    pub fn bytes(&self) -> u64 {
        match (&self.to, &self.source) {
            (Kind::Number(dtype), _) => self.shape.iter().map(|n| *n as u64).product::<u64>() * dtype.bytes(),
            (Kind::Other(_), Source::File { range, .. }) => range.1 - range.0,
            (Kind::Other(_), Source::Nowhere) => 0,
        }
    }
}

/// One tensor of a file.
struct Entry {
    stored: String,
    file: String,
    kind: Kind,
    shape: Vec<usize>,
    range: (u64, u64),
}

impl Entry {
    fn into_item<'a>(self, name: String, change: Change<'a>, dtype: Option<Dtype>) -> Item<'a> {
        let to = match (&self.kind, dtype) {
            (Kind::Number(_), Some(dtype)) => Kind::Number(dtype),
            (kind, _) => kind.clone(),
        };
        let source = Source::File { file: self.file, kind: self.kind, range: self.range };
        Item { name, shape: self.shape, to, source, change }
    }
}

/// The tensors of a file in the order of their bytes.
fn entries(file: &TensorFile) -> Result<Vec<Entry>, MergeError> {
    let problem = |message: String| MergeError::Json { file: file.name.clone(), message };
    let header: Value = serde_json::from_str(&file.header).map_err(|error| problem(error.to_string()))?;
    let data = 8 + file.header.len() as u64;
    let numbers =
        |value: &Value| -> Option<Vec<u64>> { value.as_array()?.iter().map(Value::as_u64).collect() };
    let mut entries = Vec::new();
    for (name, value) in header.as_object().into_iter().flatten().filter(|(name, _)| *name != "__metadata__")
    {
        let entry = || {
            let shape = numbers(&value["shape"])?.into_iter().map(|n| n as usize).collect();
            let offsets = numbers(&value["data_offsets"])?;
            let (&start, &end) = (offsets.first()?, offsets.get(1)?);
            let kind = Kind::of(value["dtype"].as_str()?);
            let (stored, file) = (name.clone(), file.name.clone());
            Some(Entry { stored, file, kind, shape, range: (data + start, data + end) })
        };
        entries.push(entry().ok_or_else(|| problem(format!("has a damaged entry for {name}")))?);
    }
    entries.sort_by_key(|entry| entry.range);
    Ok(entries)
}
