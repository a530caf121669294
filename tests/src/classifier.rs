//! Small classification jobs: a tiny encoder with a tokenizer of made-up words, and texts whose first word tells the label.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::job_file::examples;

/// Labels, in the order of their numbers.
pub const LABELS: [&str; 5] = ["blue", "green", "grey", "red", "white"];
/// Words of the vocabulary, after the special tokens.
const WORDS: usize = 200;

/// What a test's classification job looks like.
#[derive(Clone, Debug)]
pub struct ClassifierJob {
    pub name: &'static str,
    /// The `adapter` section.
    pub adapter: &'static str,
    pub steps: u64,
    pub lr: f64,
    pub checkpoint_every: u64,
    /// More lines of the job file.
    pub more: &'static str,
    pub workers: u32,
}

impl ClassifierJob {
    /// Writes base, data and job file below `dir`; returns the job file's path.
    pub fn write(&self, dir: &Path) -> Result<PathBuf> {
        fs::create_dir_all(dir)?;
        write_base(&dir.join("base"))?;
        fs::write(dir.join("train.jsonl"), texts(240, 1))?;
        fs::write(dir.join("eval.jsonl"), texts(25, 2))?;
        let Self { name, adapter, steps, lr, checkpoint_every, more, workers } = self;
        let yaml = format!(
            "name: {name}\nbase: ./base\ntask: classification\ndata: {{train: train.jsonl, eval: eval.jsonl}}\n\
             adapter: {{{adapter}}}\n\
             train: {{steps: {steps}, global_batch: 20, micro_batches: 4, max_length: 32, lr: {lr}, schedule: constant, \
             warmup: 0, seed: 7}}\n\
             checkpoint: {{every: {checkpoint_every}, keep: 2, best: true}}\n\
             workers: {{min: {workers}, max: {workers}}}\n{more}"
        );
        let path = dir.join(format!("{name}.yaml"));
        fs::write(&path, yaml)?;
        Ok(path)
    }
}

/// A text of that label: its first word tells it; the others, and how many there are, are drawn and tell nothing.
pub fn text(label: usize, draw: usize) -> String {
    let drawn = |i: usize, below: u64| mixed(draw as u64 * 16 + i as u64) % below;
    let rest: Vec<String> =
        (0..3 + drawn(0, 5)).map(|i| format!("w{}", 50 + drawn(1 + i as usize, 140))).collect();
    format!("w{} {}", 2 + 7 * label, rest.join(" "))
}

/// Bits that look random, and do not follow the label's turn (SplitMix64's last steps).
fn mixed(n: u64) -> u64 {
    let n = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

fn texts(count: usize, seed: usize) -> String {
    let line = |i: usize| {
        let label = i % LABELS.len();
        format!("{}\n", json!({ "text": text(label, i + 1000 * seed), "label": LABELS[label] }))
    };
    (0..count).map(line).collect()
}

/// The encoder of a parity case, with a tokenizer.
fn write_base(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let case = examples().join("../lora/tests/parity/bert-classify/base");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(case.join(file), dir.join(file))?;
    }
    fs::write(dir.join("tokenizer.json"), serde_json::to_vec(&tokenizer())?)?;
    fs::write(dir.join("tokenizer_config.json"), b"{}")?;
    Ok(())
}

/// Words between spaces, a token each, within [CLS] and [SEP].
fn tokenizer() -> Value {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];
    let words = (0..WORDS).map(|i| format!("w{i}"));
    let vocab: Map<String, Value> = special
        .iter()
        .map(ToString::to_string)
        .chain(words)
        .zip(0..)
        .map(|(word, id)| (word, json!(id)))
        .collect();
    let added = |(id, content): (usize, &&str)| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    let special_of = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let sequence = |id: &str, kind: u8| json!({ "Sequence": { "id": id, "type_id": kind } });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special.iter().enumerate().map(added).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special_of("[CLS]"), sequence("A", 0), special_of("[SEP]")],
            "pair": [special_of("[CLS]"), sequence("A", 0), special_of("[SEP]"), sequence("B", 1),
                     { "SpecialToken": { "id": "[SEP]", "type_id": 1 } }],
            "special_tokens": {
                "[CLS]": { "id": "[CLS]", "ids": [2], "tokens": ["[CLS]"] },
                "[SEP]": { "id": "[SEP]", "ids": [3], "tokens": ["[SEP]"] }
            }
        },
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]" }
    })
}
