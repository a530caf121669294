//! A real instruct model: one epoch of the games chat set on SmolLM2-135M-Instruct, beside transformers with PEFT.

use anyhow::Context as _;
use serde_json::Value;

use super::{
    engine::{cores, figure},
    peer::Peer,
    row::{Row, Target},
    trial,
};
use crate::{
    fleet::{self, Fleet},
    workspace::{root, target},
};

/// Examples a step, and steps of one epoch of 672 examples.
const BATCH: u32 = 8;
const STEPS: u32 = 84;
const LR: &str = "5e-4";

pub fn run() -> anyhow::Result<Vec<Row>> {
    let peer = Peer::find().context("the base is made with the peer's Python; set LORAFLEET_PEER_PYTHON")?;
    let base = trial::base("smollm2", &peer)?;
    let games = root().join("examples/games");
    let (train, eval) = (games.join("train.jsonl"), games.join("validation.jsonl"));
    fleet::build()?;
    let fleet = Fleet::start(&target().join("bench/instruct"), 1)?;
    let job = |name: &str, precision: &str| {
        let text = format!(
            "name: {name}\nbase: {base}\ndata: {{train: {train}, eval: {eval}}}\n\
             adapter: {{rank: 16, alpha: 32, targets: all-linear}}\n\
             train: {{epochs: 1, global_batch: {BATCH}, micro_batches: 1, max_length: 256, lr: {LR}, schedule: linear, \
             warmup: 0, precision: {precision}}}\n\
             eval: {{every: 0}}\ncheckpoint: {{every: 0}}\nworkers: {{min: 1, max: 1}}\n",
            base = trial::quoted(&base),
            train = trial::quoted(&train),
            eval = trial::quoted(&eval),
        );
        trial::run(&fleet, name, &text)
    };
    let (f32, bf16) = (job("instruct-f32", "f32")?, job("instruct-bf16", "bf16")?);
    fleet.stop()?;
    let theirs = peer.train(&peers_args(&base, &train, &eval))?;
    rows(&f32, &bf16, &theirs)
}

fn peers_args(base: &std::path::Path, train: &std::path::Path, eval: &std::path::Path) -> Vec<String> {
    let text = |path: &std::path::Path| path.display().to_string();
    let pairs = [
        ("--base", text(base)),
        ("--train", text(train)),
        ("--eval", text(eval)),
        ("--rank", "16".to_owned()),
        ("--alpha", "32".to_owned()),
        ("--targets", "all-linear".to_owned()),
        ("--batch", BATCH.to_string()),
        ("--steps", STEPS.to_string()),
        ("--seq-len", "256".to_owned()),
        ("--lr", LR.to_owned()),
        ("--threads", cores().to_string()),
    ];
    let pairs = pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
    pairs.chain(["--eval-first".to_owned()]).collect()
}

fn rows(f32: &Value, bf16: &Value, theirs: &Value) -> anyhow::Result<Vec<Row>> {
    let (before, after) = (trial::number(f32, "evalLossBefore")?, trial::number(f32, "evalLossAfter")?);
    let bf16_after = trial::number(bf16, "evalLossAfter")?;
    let row = |name: &str, ours, peer, target| Row { name: name.to_owned(), ours, peer: Some(peer), target };
    Ok(vec![
        row(
            "SmolLM2-135M-Instruct, games: evaluation loss before",
            before,
            figure(theirs, "eval_loss_before")?,
            Target::WithinOfPeer(1e-4),
        ),
        row(
            "… and after one epoch of LoRA in f32",
            after,
            figure(theirs, "eval_loss")?,
            Target::WithinOfPeer(0.01),
        ),
        row("… the same in bf16, beside ours in f32", bf16_after, after, Target::WithinOfPeer(0.01)),
    ])
}
