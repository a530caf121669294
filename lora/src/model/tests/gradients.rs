//! Gradients of the whole model, where the backward pass ends, and bits on any number of threads.

use super::*;
use crate::model::Keep;
use crate::ops::tests::{check_gradient, noise, on_threads};

#[test]
fn gradients_match_finite_differences() {
    let (model, shape) = load(&base("llama-all-linear"));
    let batch = batch(199, &[20, 13, 2], 5);
    let layout = layout(&shape, &IN_BLOCKS, 0..2, 3);
    let weights: Vec<f32> = noise(layout.len(), 1).iter().map(|x| 0.3 * x).collect();
    let (sum, gradients) = gradients(&model, &batch, &layout, &weights);
    let loss = |weights: &[f32]| {
        let view = AdapterView::new(&layout, weights);
        model.loss(&batch, Some(&view), &FlopCounter::new()).unwrap().loss
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
    let (model, shape) = load(&base("llama-selected-layers"));
    let batch = batch(199, &[9, 14], 2);
    // Every place at which the backward pass may end.
    for (roles, layers) in [
        (&[Role::Q][..], 1..4),
        (&[Role::K, Role::Down], 0..3),
        (&[Role::V], 2..3),
        (&[Role::O], 0..4),
        (&[Role::Gate], 1..2),
        (&[Role::Up], 0..4),
        (&[Role::Down], 3..4),
        (&IN_BLOCKS[..], 0..4),
    ] {
        let layout = layout(&shape, roles, layers, 2);
        let weights = noise(layout.len(), 2);
        let (_, gradients) = gradients(&model, &batch, &layout, &weights);
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
    let (model, shape) = load(small_base());
    let batch = batch(4096, &[61, 130], 20);
    let layout = layout(&shape, &IN_BLOCKS, 0..6, 16);
    let weights: Vec<f32> = noise(layout.len(), 3).iter().map(|x| 0.05 * x).collect();
    let bits = |threads| {
        let (sum, gradients) = on_threads(threads, || gradients(&model, &batch, &layout, &weights));
        (sum.loss.to_bits(), gradients.iter().map(|g| g.to_bits()).collect::<Vec<_>>())
    };
    let one = bits(1);
    for threads in [2, 3] {
        assert!(one == bits(threads), "{threads} threads");
    }
}

#[test]
fn the_same_bits_when_blocks_are_computed_again() {
    let (model, shape) = load(&base("llama-asymmetric-ranks"));
    let batch = batch(199, &[30, 11, 25], 6);
    for layers in [0..3, 1..2] {
        let layout = layout(&shape, &IN_BLOCKS, layers, 4);
        let weights = noise(layout.len(), 8);
        let (sum, kept) = gradients(&model, &batch, &layout, &weights);
        let mut again = vec![f32::NAN; layout.len()];
        let view = AdapterView::new(&layout, &weights);
        let flops = FlopCounter::new();
        let recomputed =
            model.loss_and_gradients_keeping(Keep::BlockInputs, &batch, &view, &mut again, &flops).unwrap();
        assert_eq!(sum, recomputed);
        assert!(kept.iter().map(|g| g.to_bits()).eq(again.iter().map(|g| g.to_bits())));
    }
}

#[test]
fn a_step_costs_what_a_lora_step_should() {
    let (model, shape) = load(small_base());
    for (lengths, prompt) in [(&[125, 130][..], 1), (&[300, 17, 90], 30), (&[512], 1)] {
        let batch = batch(4096, lengths, prompt);
        let layout = layout(&shape, &IN_BLOCKS, 0..6, 16);
        let weights = noise(layout.len(), 4);
        let (flops, mut gradients) = (FlopCounter::new(), vec![0.0; layout.len()]);
        let view = AdapterView::new(&layout, &weights);
        model.loss_and_gradients(&batch, &view, &mut gradients, &flops).unwrap();
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
fn a_trained_head_is_summed_over_its_chunks() {
    let (model, shape) = load(small_base());
    let head = shape.linears.iter().find(|l| l.role == Role::Head).unwrap();
    let mut layout = Layout::new();
    layout.push(&head.name, head.in_features, head.out_features, 4, 2.0);
    layout.push_whole("model.norm.weight", &[head.in_features]);
    let weights: Vec<f32> = noise(layout.len(), 7).iter().map(|x| 0.1 * x).collect();
    // More labelled tokens than a chunk has rows, together; fewer, each alone.
    let lengths = [420, 430, 410];
    let (together, gradients_together) = gradients(&model, &batch(4096, &lengths, 1), &layout, &weights);
    let (mut loss, mut sum) = (0.0, vec![0f32; layout.len()]);
    for (i, n) in lengths.into_iter().enumerate() {
        // The i-th example of a batch of empty ones before it.
        let mut alone = vec![1; i];
        alone.push(n);
        let (one, gradients) = gradients(&model, &batch(4096, &alone, 1), &layout, &weights);
        loss += one.loss;
        sum.iter_mut().zip(gradients).for_each(|(sum, g)| *sum += g);
    }
    assert!((together.loss - loss).abs() < 1e-6 * loss);
    let largest = sum.iter().fold(0f32, |most, g| most.max(g.abs()));
    for (a, b) in gradients_together.iter().zip(&sum) {
        assert!((a - b).abs() < 1e-5 * largest, "{a} in chunks, {b} alone");
    }
}

#[test]
fn nothing_labelled_costs_nothing() {
    let (model, shape) = load(&base("llama-qv"));
    let layout = layout(&shape, &[Role::Q], 0..2, 2);
    let weights = noise(layout.len(), 6);
    let batch = PackedBatch::pack([([1u32, 2, 3].as_slice(), [false; 3].as_slice())]).unwrap();
    let (sum, gradients) = gradients(&model, &batch, &layout, &weights);
    assert_eq!(sum, LossSum::default());
    assert!(gradients.iter().all(|g| *g == 0.0));
}
