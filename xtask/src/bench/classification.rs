//! A classification on a real encoder: LoRA beside full fine-tuning, both through the whole service.

use anyhow::Context as _;

use super::{
    peer::Peer,
    row::{Row, Target},
    trial,
};
use crate::{
    fleet::{self, Fleet},
    workspace::{root, target},
};

/// LoRA is to reach this part of full fine-tuning's accuracy…
const OF_FULL: f64 = 0.97;
/// … with at most this percentage of the parameters.
const TRAINABLE: f64 = 1.5;

pub fn run() -> anyhow::Result<Vec<Row>> {
    let peer = Peer::find().context("the base is made with the peer's Python; set LORAFLEET_PEER_PYTHON")?;
    let base = trial::base("minilm", &peer)?;
    fleet::build()?;
    let fleet = Fleet::start(&target().join("bench/classification"), 1)?;
    let job = |name: &str, adapter: &str, lr: &str| -> anyhow::Result<_> {
        let sections = root().join("examples/sections");
        let text = format!(
            "name: {name}\nbase: {base}\ntask: classification\ndata: {{train: {train}, eval: {test}}}\n\
             adapter: {adapter}\n\
             train: {{epochs: 1, global_batch: 32, max_length: 128, lr: {lr}, schedule: linear, warmup: 0.06}}\n\
             eval: {{every: 0, metric: accuracy}}\ncheckpoint: {{every: 0}}\nworkers: {{min: 1, max: 1}}\n",
            base = trial::quoted(&base),
            train = trial::quoted(&sections.join("train.jsonl")),
            test = trial::quoted(&sections.join("test.jsonl")),
        );
        trial::run(&fleet, name, &text)
    };
    let lora = job("sections-lora", "{rank: 8, alpha: 16, targets: all-linear}", "2e-3")?;
    let full = job("sections-full", "{method: full}", "2e-4")?;
    fleet.stop()?;
    let share =
        100.0 * trial::number(&lora, "trainableParameters")? / trial::number(&lora, "totalParameters")?;
    let accuracy = |result| trial::score(result, "accuracy");
    let row =
        |name: &str, ours: f64, peer: Option<f64>, target| Row { name: name.to_owned(), ours, peer, target };
    Ok(vec![
        row(
            "test accuracy of LoRA rank 8 on all linear layers of MiniLM; as the peer, our full fine-tuning",
            accuracy(&lora)?,
            Some(accuracy(&full)?),
            Target::TimesPeer(OF_FULL),
        ),
        row("trainable parameters of that LoRA, % of all", share, None, Target::Below(TRAINABLE)),
        row(
            "macro F1 of the same",
            trial::score(&lora, "f1")?,
            Some(trial::score(&full, "f1")?),
            Target::None,
        ),
    ])
}
