//! The whole decoder: gradients against finite differences, bits at 1, 2 and 3 threads, the count of operations.

use lorafleet_spec::BaseShape;
use lorafleet_spec::base::Head;
use std::path::{Path, PathBuf};

use super::block::Slot;
use super::{Decoder, LossSum, ModelError, PackedBatch};
use crate::flops::FlopCounter;
use crate::ops::tests::{check_gradient, noise, on_threads};
use crate::params::{AdapterView, Layout};

fn base(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(case).join("base")
}

fn load(dir: &Path) -> (Decoder, BaseShape) {
    let shape = BaseShape::read(dir, Head::LanguageModel).unwrap();
    (Decoder::load(dir, &shape).unwrap(), shape)
}

/// Adapts every module that ends with one of the names, within a layer range.
fn layout(decoder: &Decoder, names: &[&str], layers: std::ops::Range<usize>, rank: usize) -> Layout {
    let mut layout = Layout::new();
    for (i, l) in decoder.linears().enumerate() {
        if layers.contains(&(i / 7)) && names.iter().any(|n| l.name.ends_with(n)) {
            layout.push(l.name, l.in_features, l.out_features, rank, 2.0);
        }
    }
    layout
}

fn every_module() -> [&'static str; 7] {
    Slot::ALL.map(Slot::module)
}

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
    decoder: &Decoder,
    batch: &PackedBatch,
    layout: &Layout,
    weights: &[f32],
) -> (LossSum, Vec<f32>) {
    // NaN where nothing is written.
    let mut gradients = vec![f32::NAN; layout.len()];
    let view = AdapterView::new(layout, weights);
    let sum = decoder.loss_and_gradients(batch, &view, &mut gradients, &FlopCounter::new()).unwrap();
    (sum, gradients)
}

#[test]
fn gradients_match_finite_differences() {
    let (decoder, _) = load(&base("llama-all-linear"));
    let batch = batch(199, &[20, 13, 2], 5);
    let layout = layout(&decoder, &every_module(), 0..2, 3);
    let weights: Vec<f32> = noise(layout.len(), 1).iter().map(|x| 0.3 * x).collect();
    let (sum, gradients) = gradients(&decoder, &batch, &layout, &weights);
    let loss = |weights: &[f32]| {
        let view = AdapterView::new(&layout, weights);
        decoder.loss(&batch, Some(&view), &FlopCounter::new()).unwrap().loss
    };
    assert!((loss(&weights) - sum.loss).abs() < 1e-4);
    for module in layout.modules() {
        for place in [module.a.clone(), module.b.clone()] {
            check_gradient(&module.module, &weights[place.clone()], &gradients[place.clone()], |part| {
                let mut weights = weights.clone();
                weights[place.clone()].copy_from_slice(part);
                loss(&weights)
            });
        }
    }
}

#[test]
fn every_adapter_tensor_gets_a_gradient() {
    let (decoder, _) = load(&base("llama-selected-layers"));
    let batch = batch(199, &[9, 14], 2);
    // Every place at which the backward pass may end.
    for (names, layers) in [
        (&["q_proj"][..], 1..4),
        (&["k_proj", "down_proj"], 0..3),
        (&["v_proj"], 2..3),
        (&["o_proj"], 0..4),
        (&["gate_proj"], 1..2),
        (&["up_proj"], 0..4),
        (&["down_proj"], 3..4),
        (&every_module()[..], 0..4),
    ] {
        let layout = layout(&decoder, names, layers, 2);
        let weights = noise(layout.len(), 2);
        let (_, gradients) = gradients(&decoder, &batch, &layout, &weights);
        for module in layout.modules() {
            for (name, place) in [("A", module.a.clone()), ("B", module.b.clone())] {
                let part = &gradients[place];
                assert!(part.iter().all(|g| g.is_finite()), "{} {name}", module.module);
                assert!(part.iter().any(|g| *g != 0.0), "{} {name} got no gradient", module.module);
            }
        }
    }
}

#[test]
fn the_same_bits_on_any_number_of_threads() {
    let (decoder, _) = load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/base")));
    let batch = batch(4096, &[61, 130], 20);
    let layout = layout(&decoder, &every_module(), 0..6, 16);
    let weights: Vec<f32> = noise(layout.len(), 3).iter().map(|x| 0.05 * x).collect();
    let bits = |threads| {
        let (sum, gradients) = on_threads(threads, || gradients(&decoder, &batch, &layout, &weights));
        (sum.loss.to_bits(), gradients.iter().map(|g| g.to_bits()).collect::<Vec<_>>())
    };
    let one = bits(1);
    for threads in [2, 3] {
        assert!(one == bits(threads), "{threads} threads");
    }
}

#[test]
fn a_step_costs_what_a_lora_step_should() {
    let (decoder, shape) = load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/base")));
    for (lengths, prompt) in [(&[125, 130][..], 1), (&[300, 17, 90], 30), (&[512], 1)] {
        let batch = batch(4096, lengths, prompt);
        let layout = layout(&decoder, &every_module(), 0..6, 16);
        let weights = noise(layout.len(), 4);
        let (flops, mut gradients) = (FlopCounter::new(), vec![0.0; layout.len()]);
        let view = AdapterView::new(&layout, &weights);
        decoder.loss_and_gradients(&batch, &view, &mut gradients, &flops).unwrap();
        let frozen: usize = shape.linears.iter().map(|l| l.in_features * l.out_features).sum();
        let tokens: usize = lengths.iter().sum();
        // 7·s·d·L per token: two products forward, five backward, each over half of s on average.
        let attention: usize =
            lengths.iter().map(|s| 7 * s * s * shape.heads * shape.head_dim * shape.layers).sum();
        let account = (4 * frozen + 6 * layout.len()) * tokens + attention;
        let ratio = flops.total() as f64 / account as f64;
        assert!(ratio <= 1.02, "{lengths:?}: {ratio} of 4N + 6P + attention");
    }
}

#[test]
fn decoding_with_a_cache_gives_the_logits_of_the_whole() {
    let (decoder, _) = load(&base("llama-qv"));
    let layout = layout(&decoder, &every_module(), 0..2, 4);
    let weights: Vec<f32> = noise(layout.len(), 5).iter().map(|x| 0.1 * x).collect();
    let view = AdapterView::new(&layout, &weights);
    let tokens: Vec<u32> = (0..17).map(|i| i * 11 % 199).collect();
    let whole = decoder.logits(&PackedBatch::unlabelled([tokens.as_slice()]), Some(&view)).unwrap();
    let mut cache = decoder.new_cache(17);
    let mut at = 0;
    for n in [5, 1, 1, 7, 3] {
        let logits = decoder.decode(&tokens[at..at + n], Some(&view), &mut cache).unwrap();
        at += n;
        for (x, y) in logits.iter().zip(&whole[(at - 1) * 199..at * 199]) {
            assert!((x - y).abs() < 1e-5, "after {at} tokens: {x} and {y}");
        }
    }
    let full = decoder.decode(&[1], Some(&view), &mut cache);
    assert!(matches!(full, Err(ModelError::TooLong { tokens: 18, positions: 17 })));
}

#[test]
fn an_example_does_not_see_its_neighbours() {
    let (decoder, _) = load(&base("llama-qv"));
    let (a, b) = ([5u32, 9, 77, 3].as_slice(), [8u32, 1, 2].as_slice());
    let together = decoder.logits(&PackedBatch::unlabelled([a, b]), None).unwrap();
    let alone = [a, b].map(|s| decoder.logits(&PackedBatch::unlabelled([s]), None).unwrap()).concat();
    assert_eq!(together, alone, "bit for bit");
}

#[test]
fn what_does_not_fit_is_refused() {
    let (decoder, _) = load(&base("llama-qv"));
    let logits = |tokens: &[u32]| decoder.logits(&PackedBatch::unlabelled([tokens]), None);
    assert!(matches!(logits(&[3, 199]), Err(ModelError::Token { token: 199, vocabulary: 199 })));
    assert!(matches!(logits(&[0; 129]), Err(ModelError::TooLong { tokens: 129, positions: 128 })));
    let mut layout = Layout::new();
    layout.push("model.layers.0.self_attn.q_proj", 48, 49, 2, 1.0);
    let weights = vec![0.0; layout.len()];
    let view = AdapterView::new(&layout, &weights);
    let error = decoder.loss(&batch(199, &[4], 1), Some(&view), &FlopCounter::new()).unwrap_err().to_string();
    assert!(error.contains("q_proj") && error.contains("(48, 49)"), "{error}");
}

#[test]
fn nothing_labelled_costs_nothing() {
    let (decoder, _) = load(&base("llama-qv"));
    let layout = layout(&decoder, &["q_proj"], 0..2, 2);
    let weights = noise(layout.len(), 6);
    let batch = PackedBatch::pack([([1u32, 2, 3].as_slice(), [false; 3].as_slice())]).unwrap();
    let (sum, gradients) = gradients(&decoder, &batch, &layout, &weights);
    assert_eq!(sum, LossSum::default());
    assert!(gradients.iter().all(|g| *g == 0.0));
}

#[test]
fn a_file_truncated_after_its_shape_was_read_is_named() {
    let from = base("llama-qv");
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(from.join(file), dir.path().join(file)).unwrap();
    }
    let shape = BaseShape::read(dir.path(), Head::LanguageModel).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("model.safetensors")).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    let error = Decoder::load(dir.path(), &shape).unwrap_err().to_string();
    assert!(error.contains("model.") && error.contains("truncated"), "{error}");
}

#[test]
fn shards_are_one_model() {
    use safetensors::{SafeTensors, serialize_to_file};
    let from = base("llama-qv");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("config.json"), dir.path().join("config.json")).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let whole = SafeTensors::deserialize(&bytes).unwrap();
    let shard = |name: &str| format!("model-{}.safetensors", name.len() % 2);
    for i in ["0", "1"] {
        let file = format!("model-{i}.safetensors");
        let tensors = whole.tensors().into_iter().filter(|(name, _)| shard(name) == file);
        serialize_to_file(tensors, None, &dir.path().join(&file)).unwrap();
    }
    let map: serde_json::Map<_, _> = whole.names().iter().map(|n| (n.to_string(), shard(n).into())).collect();
    let index = serde_json::json!({ "weight_map": map });
    std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let logits =
        |dir: &Path| load(dir).0.logits(&PackedBatch::unlabelled([&[3u32, 50, 7][..]]), None).unwrap();
    assert_eq!(logits(dir.path()), logits(&from));
}
