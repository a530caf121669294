//! The initial weights: PEFT's draws, the base's principal parts (PiSSA, OLoRA), DoRA's norms, the base's own tensors.

mod qr;
mod svd;

use lorafleet_spec::base::BaseShape;
use lorafleet_spec::job::Init;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{AdapterError, ReadTensor};
use crate::params::{AdaptedModule, Layout, ModuleKind, WholeTensor};

/// The generator of a named purpose: ChaCha8 whose key is the sha256 of the purpose, the seed and a name.
///
/// Counter-based, so that a draw depends on nothing but its name and place, never on what was drawn before it.
pub(crate) fn generator(purpose: &str, seed: u64, name: &str) -> ChaCha8Rng {
    let mut key = Sha256::new();
    key.update(purpose.as_bytes());
    key.update([0]);
    key.update(seed.to_le_bytes());
    key.update(name.as_bytes());
    ChaCha8Rng::from_seed(key.finalize().into())
}

/// How an adapter begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Initial {
    /// All weights, as long as the layout.
    pub weights: Vec<f32>,
    /// The same `A` and `B` to be subtracted, where they are a part of the base (PiSSA, OLoRA).
    pub start: Option<Vec<f32>>,
}

/// The initial weights of a layout. `read` gives the base's tensors, where the form needs them.
///
/// Each module and tensor is made from a generator of its own, keyed by (seed, name), on any number of threads.
///
/// # Errors
/// A tensor of the base cannot be read.
pub fn initial(
    layout: &Layout,
    init: Init,
    seed: u64,
    shape: &BaseShape,
    read: &ReadTensor,
) -> Result<Initial, AdapterError> {
    let mut weights = match init {
        Init::Kaiming | Init::Gaussian => draws(layout, init, seed),
        Init::Pissa | Init::Olora => start(init, layout, shape, read)?,
    };
    let start = matches!(init, Init::Pissa | Init::Olora).then(|| weights.clone());
    // Either B·A is zero, or it is subtracted: the adapted weight is the base's, and so are its norms.
    let dora: Vec<&AdaptedModule> = layout.modules().iter().filter(|m| m.magnitude.is_some()).collect();
    let norms = dora.par_iter().map(|module| norms(module, shape, read));
    for (module, norms) in dora.iter().zip(norms.collect::<Result<Vec<_>, AdapterError>>()?) {
        if let Some(place) = &module.magnitude {
            weights[place.clone()].copy_from_slice(&norms);
        }
    }
    for tensor in layout.whole() {
        let values =
            if shape.fresh.contains(&tensor.name) { fresh(tensor, shape, seed) } else { read(&tensor.name)? };
        weights[tensor.place.clone()].copy_from_slice(&values);
    }
    Ok(Initial { weights, start })
}

/// `A` and `B` of every module as its base weight's principal part; what is not low-rank stays zero. Embeddings start as
/// PEFT starts them, with a product of zero.
///
/// # Errors
/// A tensor of the base cannot be read.
pub(super) fn start(
    init: Init,
    layout: &Layout,
    shape: &BaseShape,
    read: &ReadTensor,
) -> Result<Vec<f32>, AdapterError> {
    let mut all = vec![0.0; layout.len()];
    let linears: Vec<&AdaptedModule> =
        layout.modules().iter().filter(|m| m.kind == ModuleKind::Linear).collect();
    let part = |module: &&AdaptedModule| -> Result<(Vec<f32>, Vec<f32>), AdapterError> {
        let weight = weight(module, shape, read)?;
        let (m, n, rank) = (module.out_features, module.in_features, module.rank);
        Ok(match init {
            Init::Olora => qr::leading(&weight, m, n, rank),
            _ => svd::principal(&weight, m, n, rank).factors(f64::from(module.scale)),
        })
    };
    let parts = linears.par_iter().map(part).collect::<Result<Vec<_>, _>>()?;
    for (module, (a, b)) in linears.iter().zip(parts) {
        all[module.a.clone()].copy_from_slice(&a);
        all[module.b.clone()].copy_from_slice(&b);
    }
    for module in layout.modules().iter().filter(|m| m.kind == ModuleKind::Embedding) {
        embedding(module, 0, &mut all);
    }
    Ok(all)
}

/// PEFT's draws: `A ~ U(−1/√in, 1/√in)`, which is Kaiming-uniform with a = √5, or `A ~ N(0, 1/rank)` by deviation; `B = 0`.
/// Of embeddings `A = 0` and `B ~ N(0, 1)`.
fn draws(layout: &Layout, init: Init, seed: u64) -> Vec<f32> {
    let mut weights = vec![0.0; layout.len()];
    for module in layout.modules() {
        if module.kind == ModuleKind::Embedding {
            embedding(module, seed, &mut weights);
            continue;
        }
        let mut draws = generator("lorafleet adapter init 1", seed, &module.module);
        let a = &mut weights[module.a.clone()];
        if init == Init::Gaussian {
            gaussian(&mut draws, 1.0 / module.rank as f64, a);
            continue;
        }
        let bound = (1.0 / (module.in_features as f64).sqrt()) as f32;
        for weight in a {
            // 24 bits of the draw, exact in f32: a multiple of 2^-23 in [-1, 1).
            let unit = (draws.next_u32() >> 8) as f32 * (1.0 / (1 << 23) as f32) - 1.0;
            *weight = unit * bound;
        }
    }
    weights
}

fn embedding(module: &AdaptedModule, seed: u64, weights: &mut [f32]) {
    let mut draws = generator("lorafleet adapter init 1", seed, &module.module);
    gaussian(&mut draws, 1.0, &mut weights[module.b.clone()]);
}

/// A tensor that the base does not have: weights from N(0, initializer_range), biases zero.
fn fresh(tensor: &WholeTensor, shape: &BaseShape, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; tensor.place.len()];
    if tensor.shape.len() > 1 {
        let mut draws = generator("lorafleet head init 1", seed, &tensor.name);
        gaussian(&mut draws, shape.initializer_range, &mut values);
    }
    values
}

/// Normal draws by the Box-Muller transform, in f64 by libm.
fn gaussian(draws: &mut ChaCha8Rng, deviation: f64, out: &mut [f32]) {
    for pair in out.chunks_mut(2) {
        // (0, 1] and [0, 1), multiples of 2^-32.
        let first = (f64::from(draws.next_u32()) + 1.0) / f64::from(1u32 << 31) / 2.0;
        let second = f64::from(draws.next_u32()) / f64::from(1u32 << 31) / 2.0;
        let radius = deviation * (-2.0 * libm::log(first)).sqrt();
        let angle = 2.0 * std::f64::consts::PI * second;
        let values = [radius * libm::cos(angle), radius * libm::sin(angle)];
        pair.iter_mut().zip(values).for_each(|(out, value)| *out = value as f32);
    }
}

/// The base's weight of a module, `[out, in]`.
fn weight(module: &AdaptedModule, shape: &BaseShape, read: &ReadTensor) -> Result<Vec<f32>, AdapterError> {
    let linear = shape.linear(&module.module);
    let tied = shape.tied && linear.is_some_and(|l| l.role == lorafleet_spec::base::Role::Head);
    let tokens = shape.embedding_at(lorafleet_spec::base::EmbeddingRole::Tokens).filter(|_| tied);
    let name = tokens.map_or(module.module.as_str(), |tokens| tokens.name.as_str());
    let stored = read(&format!("{name}.weight"))?;
    if module.kind == ModuleKind::Linear && !linear.is_some_and(|linear| linear.conv1d) {
        return Ok(stored);
    }
    let (outputs, inputs) = (module.out_features, module.in_features);
    Ok((0..stored.len()).map(|at| stored[at % inputs * outputs + at / inputs]).collect())
}

/// The norm of each row of a module's base weight.
fn norms(module: &AdaptedModule, shape: &BaseShape, read: &ReadTensor) -> Result<Vec<f32>, AdapterError> {
    let weight = weight(module, shape, read)?;
    Ok(weight.chunks_exact(module.in_features).map(crate::linear::norm).collect())
}

#[cfg(test)]
mod tests;
