//! The example base: its loss is transformers' loss, and what it answers does not depend on the cache.

use lorafleet_lora::{EvalSums, GenerateOptions, Trainer, generate};

use crate::fixtures::{base, examples, job};

#[test]
fn the_base_has_transformers_loss() {
    // transformers 5, f32, on the same 84 chats at most 256 tokens long.
    const LOSS: f64 = 4.05093;
    let data = examples("validation.jsonl", 84, 256);
    // B is zero before the first step, so the adapted model is the base.
    let trainer = Trainer::new(base(), &job("steps: 1", "rank: 4"), 1, 0).unwrap();
    let mut sums = EvalSums::default();
    for batch in data.chunks(16) {
        sums.add(&trainer.evaluate(&batch.iter().collect::<Vec<_>>()).unwrap().sums);
    }
    assert_eq!(sums.labelled_tokens, 8291);
    let loss = sums.mean_loss().unwrap();
    assert!((loss - LOSS).abs() < 1e-4 * LOSS, "{loss} is not {LOSS}");
}

#[test]
fn an_answer_is_the_likeliest_continuation() {
    let base = base();
    let example = &examples("validation.jsonl", 2, 64)[0];
    let prompt = &example.tokens[..20];
    let answer = generate(&base, None, prompt, &GenerateOptions::greedy(12, Vec::new())).unwrap();
    assert_eq!(answer.len(), 12);
    // Without a cache: the whole sequence again for every token.
    let mut tokens = prompt.to_vec();
    for &expected in &answer {
        let again = generate(&base, None, &tokens, &GenerateOptions::greedy(1, Vec::new())).unwrap();
        assert_eq!(again, [expected], "after {} tokens", tokens.len());
        tokens.push(expected);
    }
    let stop = GenerateOptions::greedy(12, vec![answer[3]]);
    let first = answer.iter().position(|&token| token == answer[3]).unwrap();
    assert_eq!(generate(&base, None, prompt, &stop).unwrap(), answer[..first]);
}

#[test]
fn sampled_answers_follow_their_seed() {
    let base = base();
    let trainer = Trainer::new(base.clone(), &job("steps: 1", "rank: 4"), 1, 0).unwrap();
    let adapter = trainer.adapter();
    let prompt = &examples("validation.jsonl", 2, 64)[1].tokens[..16];
    let sample = |seed| {
        let options =
            GenerateOptions { max_new_tokens: 24, temperature: 0.9, top_p: 0.95, seed, stop: vec![] };
        generate(&base, Some(&adapter), prompt, &options).unwrap()
    };
    assert_eq!(sample(1), sample(1));
    assert_ne!(sample(1), sample(2));
}
