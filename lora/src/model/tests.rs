//! The whole model: gradients against finite differences, bits at 1, 2 and 3 threads, the count of operations.

mod decoding;
mod families;
mod files;
mod gradients;

use lorafleet_spec::BaseShape;
use lorafleet_spec::base::{Head, Role};
use lorafleet_spec::data::{Example, Target};
use lorafleet_spec::job::Precision;
use std::path::{Path, PathBuf};

use super::{LossSum, PackedBatch, Transformer};
use crate::flops::FlopCounter;
use crate::params::{AdapterView, Dropout, Layout, ModuleKind, ModuleSpec};

fn base(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(case).join("base")
}

fn small_base() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/base"))
}

fn load(dir: &Path) -> (Transformer, BaseShape) {
    let shape = BaseShape::read(dir, Head::LanguageModel).unwrap();
    (Transformer::load(dir, &shape, Precision::F32).unwrap(), shape)
}

/// Adapts every layer with one of the roles, within a layer range.
fn layout(shape: &BaseShape, roles: &[Role], layers: std::ops::Range<usize>, rank: usize) -> Layout {
    let mut layout = Layout::new();
    for l in &shape.linears {
        if l.layer.is_some_and(|layer| layers.contains(&layer)) && roles.contains(&l.role) {
            layout.push(&l.name, l.in_features, l.out_features, rank, 2.0);
        }
    }
    layout
}

/// Every linear layer within the blocks.
const IN_BLOCKS: [Role; 9] =
    [Role::Q, Role::K, Role::V, Role::Qkv, Role::O, Role::Gate, Role::Up, Role::GateUp, Role::Down];

fn batch(vocabulary: u32, lengths: &[usize], prompt: usize) -> PackedBatch {
    let sequences: Vec<(Vec<u32>, Vec<bool>)> = lengths
        .iter()
        .enumerate()
        .map(|(s, &n)| {
            let tokens = (0..n).map(|i| ((i * 31 + s * 17) as u32 * 7 + 3) % vocabulary).collect();
            (tokens, (0..n).map(|i| i >= prompt.max(1)).collect())
        })
        .collect();
    PackedBatch::pack(sequences.iter().map(|(t, l)| (t.as_slice(), l.as_slice()))).unwrap()
}

fn gradients(
    model: &Transformer,
    batch: &PackedBatch,
    layout: &Layout,
    weights: &[f32],
) -> (LossSum, Vec<f32>) {
    // NaN where nothing is written.
    let mut gradients = vec![f32::NAN; layout.len()];
    let view = AdapterView::new(layout, weights);
    let sum = model.loss_and_gradients(batch, &view, &mut gradients, &FlopCounter::new()).unwrap();
    (sum, gradients)
}
