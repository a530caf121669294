//! Every optimizer against PyTorch's and bitsandbytes' numbers, and for what all must keep. See tests/optim/generate.py.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

use super::adamw::{AdamW, Settings};
use super::adamw_8bit::AdamW8bit;
use super::dynamic_map::DynamicMap;
use super::file::{self, Scalar};
use super::lion::Lion;
use super::rules::Rules;
use super::sgd::Sgd;
use super::state::State;
use super::{Optimizer, Parameter, Update};

const STEPS: u64 = 6;
const LR: f64 = 1e-2;
const DECAY: f64 = 0.1;
const SETTINGS: Settings = Settings { beta1: 0.9, beta2: 0.99, eps: 1e-8 };
/// `large` and `small`, side by side.
const SHAPES: [(&str, [usize; 2]); 2] = [("large", [40, 110]), ("small", [5, 7])];
const LEN: usize = 40 * 110 + 5 * 7;

fn reference(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/optim").join(name)
}

/// The script's `gradient`, over both tensors.
fn gradient(step: u64) -> Vec<f32> {
    let value = |n: u64| {
        let hashed = n.wrapping_mul(2_654_435_761).wrapping_add(step * 40_503) % (1 << 32);
        let shift = (hashed / 2048) % 16;
        (((hashed % 2001) as f64 - 1000.0) / f64::from(1u32 << shift) / 1024.0) as f32
    };
    (0..LEN as u64).map(value).collect()
}

fn parameters(lr: impl Fn(&str) -> f64) -> Vec<Parameter> {
    let mut end = 0;
    let parameter = |(key, shape): &(&str, [usize; 2])| {
        let start = end;
        end += shape.iter().product::<usize>();
        let lr = lr(key);
        Parameter { key: (*key).into(), shape: shape.to_vec(), place: start..end, lr, weight_decay: DECAY }
    };
    SHAPES.iter().map(parameter).collect()
}

fn optimizers(parameters: &[Parameter]) -> Vec<(&'static str, Box<dyn Optimizer>)> {
    vec![
        ("adamw", Box::new(AdamW::new(SETTINGS, parameters))),
        ("adamw_8bit", Box::new(AdamW8bit::new(SETTINGS, parameters))),
        ("sgd", Box::new(Sgd::new(0.9, parameters))),
        ("sgd_plain", Box::new(Sgd::new(0.0, parameters))),
        ("lion", Box::new(Lion::new(0.9, 0.99, parameters))),
    ]
}

fn start(optimizer: &dyn Optimizer) -> State {
    State { weights: gradient(0), ..State::zeros(0, optimizer.plan()) }
}

/// The state after the steps that follow `state`.
fn train(optimizer: &dyn Optimizer, mut state: State, steps: u64) -> State {
    // What the spare state held before must not matter.
    let mut spare = State { weights: vec![f32::NAN; LEN], ..State::zeros(0, optimizer.plan()) };
    spare.floats.iter_mut().for_each(|buffer| buffer.fill(7.0));
    spare.codes.iter_mut().for_each(|buffer| buffer.fill(7));
    for step in state.step + 1..=steps {
        let update = Update { share: step as f64 / STEPS as f64, clip: 1.0, count: step };
        assert!(optimizer.step(update, &gradient(step), &state, &mut spare));
        std::mem::swap(&mut state, &mut spare);
        assert_eq!(state.step, step);
    }
    state
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let view = file.tensor(name).unwrap();
    view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn assert_near(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (place, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        assert!(
            (ours - theirs).abs() <= 2e-6 * theirs.abs().max(0.1),
            "{what}, {place}: {ours}, not {theirs}"
        );
    }
}

#[test]
fn weights_are_pytorchs_and_bitsandbytes() {
    let bytes = std::fs::read(reference("reference.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let parameters = parameters(|_| LR);
    for (name, optimizer) in optimizers(&parameters) {
        let state = train(&*optimizer, start(&*optimizer), STEPS);
        for parameter in &parameters {
            let key = format!("weights/{name}/{}", parameter.key);
            assert_near(&state.weights[parameter.place.clone()], &floats(&file, &key), &key);
        }
    }
}

#[test]
fn codes_and_scales_are_bitsandbytes() {
    let bytes = std::fs::read(reference("reference.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (map, name) in [(DynamicMap::signed(), "map/signed"), (DynamicMap::unsigned(), "map/unsigned")] {
        assert_eq!(map.values.as_slice(), floats(&file, name), "{name}");
    }
    let parameters = parameters(|_| LR);
    let optimizer = AdamW8bit::new(SETTINGS, &parameters);
    let state = train(&optimizer, start(&optimizer), STEPS);
    for (place, name) in ["exp_avg", "exp_avg_sq"].into_iter().enumerate() {
        let theirs = file.tensor(&format!("codes/adamw_8bit/{name}")).unwrap();
        let ours = &state.codes[place][parameters[0].place.clone()];
        // A last bit of difference may decide between two codes.
        let others = ours.iter().zip(theirs.data()).filter(|(ours, theirs)| ours != theirs);
        assert!(others.clone().all(|(ours, theirs)| ours.abs_diff(*theirs) == 1), "{name}");
        assert!(others.count() <= ours.len() / 1000, "{name}");
        let scales = floats(&file, &format!("absmax/adamw_8bit/{name}"));
        assert_eq!(state.floats[2 + place].len(), scales.len());
        assert_near(&state.floats[2 + place], &scales, name);
    }
}

#[test]
fn eight_bits_are_a_quarter_of_the_state() {
    let parameters = parameters(|_| LR);
    let (wide, narrow) = (AdamW::new(SETTINGS, &parameters), AdamW8bit::new(SETTINGS, &parameters));
    assert_eq!(wide.plan().bytes(), 8 * LEN);
    // Two codes a weight, two scales a block, and the small tensor in f32.
    assert_eq!(narrow.plan().bytes(), 2 * LEN + 8 * 18 + 8 * 35);
}

#[test]
fn loraplus_groups_are_pefts() {
    let text = std::fs::read_to_string(reference("groups.json")).unwrap();
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let rules = Rules { lr: 1e-3, weight_decay: 0.01, loraplus_lr_ratio: 16.0 };
    for row in &rows {
        let key = row["key"].as_str().unwrap();
        let (lr, decay) = rules.of(key, row["dimensions"].as_u64().unwrap() as usize);
        assert!((lr / row["lr"].as_f64().unwrap() - 1.0).abs() < 1e-12, "{key}: {lr}");
        assert_eq!(decay, row["weight_decay"].as_f64().unwrap(), "{key}");
        assert_eq!(Rules { loraplus_lr_ratio: 1.0, ..rules }.of(key, 2), (1e-3, 0.01));
    }
    assert_eq!(rows.len(), 8);
}

#[test]
fn each_tensor_learns_at_its_own_rate() {
    let both = parameters(|_| LR);
    let other = parameters(|key| if key == "small" { 3.0 * LR } else { LR });
    for ((name, one), (_, two)) in optimizers(&both).into_iter().zip(optimizers(&other)) {
        let (one, two) = (train(&*one, start(&*one), 2), train(&*two, start(&*two), 2));
        let small = both[1].place.clone();
        assert_eq!(one.weights[..small.start], two.weights[..small.start], "{name}");
        assert_ne!(one.weights[small.clone()], two.weights[small], "{name}");
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let parameters = parameters(|_| LR);
    for (name, optimizer) in optimizers(&parameters) {
        let states = [1, 2, 3].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| train(&*optimizer, start(&*optimizer), STEPS))
        });
        assert!(states[0] == states[1] && states[1] == states[2], "{name}");
    }
}

#[test]
fn a_state_read_from_its_file_goes_on_to_the_same_bits() {
    let parameters = parameters(|_| LR);
    for (name, optimizer) in optimizers(&parameters) {
        let half = train(&*optimizer, start(&*optimizer), 3);
        let best = [("best_step", Scalar::Integer(2)), ("best_score", Scalar::Real(0.1))];
        let bytes = file::write(optimizer.plan(), &half, &best).to_vec();
        assert_eq!(bytes, file::write(optimizer.plan(), &half, &best).to_vec(), "{name}");
        let mut read = State { weights: half.weights.clone(), ..State::zeros(0, optimizer.plan()) };
        let scalars = file::read(optimizer.plan(), &bytes, &mut read).unwrap();
        assert_eq!(scalars["best_score"], Scalar::Real(0.1));
        assert_eq!((scalars.len(), read == half), (2, true), "{name}");
        let whole = train(&*optimizer, start(&*optimizer), STEPS);
        assert!(train(&*optimizer, read, STEPS) == whole, "{name}");
    }
}

#[test]
fn a_file_of_another_optimizer_is_refused_by_name() {
    let parameters = parameters(|_| LR);
    let (sgd, lion) = (Sgd::new(0.9, &parameters), Lion::new(0.9, 0.99, &parameters));
    let bytes = file::write(sgd.plan(), &start(&sgd), &[]).to_vec();
    let message = file::read(lion.plan(), &bytes, &mut start(&lion)).unwrap_err().to_string();
    assert!(message.contains("exp_avg/large is missing"), "{message}");
    assert!(message.contains("momentum_buffer/small is not expected"), "{message}");
    assert!(file::read(sgd.plan(), &bytes[..bytes.len() - 1], &mut start(&sgd)).is_err());
}

#[test]
fn a_weight_that_is_not_finite_is_reported() {
    let parameters = parameters(|_| f64::MAX);
    for (name, optimizer) in optimizers(&parameters) {
        let update = Update { share: 1.0, clip: 1.0, count: 1 };
        let (from, mut to) = (start(&*optimizer), start(&*optimizer));
        assert!(!optimizer.step(update, &gradient(1), &from, &mut to), "{name}");
    }
}
