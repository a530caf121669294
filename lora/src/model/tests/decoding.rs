//! Logits: token by token with a cache, of packed sequences, and what is refused.

use super::*;
use crate::model::ModelError;
use crate::ops::tests::noise;

#[test]
fn decoding_with_a_cache_gives_the_logits_of_the_whole() {
    let (model, shape) = load(&base("llama-qv"));
    let layout = layout(&shape, &IN_BLOCKS, 0..2, 4);
    let weights: Vec<f32> = noise(layout.len(), 5).iter().map(|x| 0.1 * x).collect();
    let view = AdapterView::new(&layout, &weights);
    let tokens: Vec<u32> = (0..17).map(|i| i * 11 % 199).collect();
    let whole = model.logits(&PackedBatch::unlabelled([tokens.as_slice()]), Some(&view)).unwrap();
    let mut session = model.session(Some(&view), 17).unwrap();
    let mut at = 0;
    for n in [5, 1, 1, 7, 3] {
        let logits = session.append(&tokens[at..at + n]).unwrap();
        at += n;
        for (x, y) in logits.iter().zip(&whole[(at - 1) * 199..at * 199]) {
            assert!((x - y).abs() < 1e-5, "after {at} tokens: {x} and {y}");
        }
    }
    assert!(matches!(session.append(&[200]), Err(ModelError::TooLong { .. })));
    let full = session.append(&[1]);
    assert!(matches!(full, Err(ModelError::TooLong { tokens: 18, positions: 17 })));
}

#[test]
fn an_example_does_not_see_its_neighbours() {
    let (model, _) = load(&base("llama-qv"));
    let (a, b) = ([5u32, 9, 77, 3].as_slice(), [8u32, 1, 2].as_slice());
    let together = model.logits(&PackedBatch::unlabelled([a, b]), None).unwrap();
    let alone = [a, b].map(|s| model.logits(&PackedBatch::unlabelled([s]), None).unwrap()).concat();
    assert_eq!(together, alone, "bit for bit");
}

#[test]
fn what_does_not_fit_is_refused() {
    let (model, _) = load(&base("llama-qv"));
    let logits = |tokens: &[u32]| model.logits(&PackedBatch::unlabelled([tokens]), None);
    assert!(matches!(logits(&[3, 199]), Err(ModelError::Token { token: 199, vocabulary: 199 })));
    assert!(matches!(logits(&[0; 129]), Err(ModelError::TooLong { tokens: 129, positions: 128 })));
    let loss = |layout: &Layout| {
        let weights = vec![0.0; layout.len()];
        let view = AdapterView::new(layout, &weights);
        model.loss(&batch(199, &[4], 1), Some(&view), &FlopCounter::new()).unwrap_err().to_string()
    };
    let mut layout = Layout::new();
    layout.push("model.layers.0.self_attn.q_proj", 48, 49, 2, 1.0);
    let error = loss(&layout);
    assert!(error.contains("q_proj") && error.contains("(48, 49)"), "{error}");
    let mut layout = Layout::new();
    layout.push_whole("model.norm.weight", &[47]);
    let error = loss(&layout);
    assert!(error.contains("model.norm.weight") && error.contains("[47]"), "{error}");
    let predicted = model.predict(&PackedBatch::unlabelled([[1u32].as_slice()]), None).unwrap_err();
    assert!(predicted.to_string().contains("language model"), "{predicted}");
}
