//! Initial weights of every form: their distributions, their products, their bits.

use std::collections::BTreeMap;

use lorafleet_spec::base::Head;

use super::*;
use crate::model::ModelError;
use crate::ops::tests::{noise, on_threads};
use crate::params::ModuleSpec;

fn layout(modules: &[&str], magnitude: bool) -> Layout {
    let mut layout = Layout::new();
    for module in modules {
        let (kind, in_features, out_features) = (ModuleKind::Linear, 48, 48);
        layout.push_module(&ModuleSpec {
            module,
            kind,
            in_features,
            out_features,
            rank: 4,
            scale: 1.5,
            magnitude,
        });
    }
    layout
}

const Q: &str = "model.layers.0.self_attn.q_proj";
const O: &str = "model.layers.1.self_attn.o_proj";

fn shape() -> BaseShape {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/llama-qv/base");
    BaseShape::read(std::path::Path::new(dir), Head::LanguageModel).unwrap()
}

fn read(name: &str) -> Result<Vec<f32>, ModelError> {
    Ok(noise(48 * 48, name.len() as u64))
}

fn of(layout: &Layout, init: Init, seed: u64) -> Initial {
    initial(layout, init, seed, &shape(), &read).unwrap()
}

#[test]
fn a_is_uniform_and_b_is_zero() {
    let layout = layout(&[Q], false);
    let Initial { weights, start } = of(&layout, Init::Kaiming, 1);
    assert_eq!(start, None);
    let module = &layout.modules()[0];
    let (a, b) = (&weights[module.a.clone()], &weights[module.b.clone()]);
    assert!(b.iter().all(|&b| b == 0.0));
    let bound = 1.0 / 48f32.sqrt();
    assert!(a.iter().all(|a| a.abs() <= bound));
    let mean = a.iter().sum::<f32>() / a.len() as f32;
    let variance = a.iter().map(|a| a * a).sum::<f32>() / a.len() as f32;
    assert!(mean.abs() < 0.02, "{mean}");
    assert!((variance - bound * bound / 3.0).abs() < 1e-3, "{variance}");
}

#[test]
fn gaussian_draws_have_the_deviation_of_one_over_the_rank() {
    let layout = layout(&[Q, O], false);
    let weights = of(&layout, Init::Gaussian, 1).weights;
    let a: Vec<f32> = layout.modules().iter().flat_map(|m| weights[m.a.clone()].to_vec()).collect();
    let variance = a.iter().map(|a| a * a).sum::<f32>() / a.len() as f32;
    assert!((variance.sqrt() - 0.25).abs() < 0.03, "{variance}");
    assert!(weights[layout.modules()[0].b.clone()].iter().all(|&b| b == 0.0));
}

#[test]
fn an_embedding_starts_with_a_zero_and_b_normal() {
    let mut layout = Layout::new();
    layout.push_module(&ModuleSpec {
        module: "model.embed_tokens",
        kind: ModuleKind::Embedding,
        in_features: 199,
        out_features: 48,
        rank: 8,
        scale: 1.0,
        magnitude: false,
    });
    let module = &layout.modules()[0];
    for init in [Init::Kaiming, Init::Pissa] {
        let weights = of(&layout, init, 1).weights;
        assert!(weights[module.a.clone()].iter().all(|&a| a == 0.0));
        let b = &weights[module.b.clone()];
        let variance = b.iter().map(|b| b * b).sum::<f32>() / b.len() as f32;
        assert!((variance - 1.0).abs() < 0.25, "{variance}");
    }
}

#[test]
fn a_module_draws_the_same_in_any_company() {
    let (both, one) = (layout(&[Q, O], false), layout(&[O], false));
    let (all, alone) = (of(&both, Init::Kaiming, 3).weights, of(&one, Init::Kaiming, 3).weights);
    let (v, only) = (&both.modules()[1], &one.modules()[0]);
    assert_eq!(all[v.a.clone()], alone[only.a.clone()]);
    assert_ne!(all[v.a.clone()], all[both.modules()[0].a.clone()]);
    assert_ne!(of(&one, Init::Kaiming, 4).weights, alone);
}

#[test]
fn a_start_is_the_same_part_of_the_base_for_any_seed_and_threads() {
    let layout = layout(&[Q, O], true);
    for init in [Init::Pissa, Init::Olora] {
        let initial = of(&layout, init, 1);
        assert_eq!(initial, of(&layout, init, 2));
        for threads in [1, 3] {
            assert_eq!(initial, on_threads(threads, || of(&layout, init, 1)));
        }
        let start = initial.start.unwrap();
        for module in layout.modules() {
            assert_eq!(start[module.a.clone()], initial.weights[module.a.clone()]);
            assert_eq!(start[module.b.clone()], initial.weights[module.b.clone()]);
            assert!(start[module.b.clone()].iter().any(|&b| b != 0.0));
        }
    }
}

#[test]
fn magnitudes_start_as_the_norms_of_the_base() {
    let layout = layout(&[Q], true);
    let place = layout.modules()[0].magnitude.clone().unwrap();
    let weight = read(&format!("{Q}.weight")).unwrap();
    for init in [Init::Kaiming, Init::Pissa] {
        let weights = of(&layout, init, 1).weights;
        for (m, row) in weights[place.clone()].iter().zip(weight.chunks_exact(48)) {
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!((m - norm).abs() < 1e-4, "{m} and {norm}");
        }
    }
}

#[test]
fn whole_tensors_start_as_the_bases_or_fresh() {
    let mut shape = shape();
    shape.fresh = vec!["score.weight".to_owned(), "score.bias".to_owned()];
    shape.initializer_range = 0.02;
    let mut layout = Layout::new();
    layout.push_whole("model.norm.weight", &[48]);
    layout.push_whole("score.weight", &[40, 48]);
    layout.push_whole("score.bias", &[40]);
    let tensors = BTreeMap::from([("model.norm.weight", vec![0.5; 48])]);
    let read = |name: &str| Ok(tensors[name].clone());
    let weights = initial(&layout, Init::Kaiming, 1, &shape, &read).unwrap().weights;
    assert!(weights[..48].iter().all(|&w| w == 0.5));
    let fresh = &weights[48..48 + 1920];
    let variance = fresh.iter().map(|x| x * x).sum::<f32>() / 1920.0;
    assert!((variance.sqrt() - 0.02).abs() < 1e-3, "{variance}");
    assert!(weights[48 + 1920..].iter().all(|&w| w == 0.0));
}
