//! The trainer's speed and memory, beside the peer's: same base, data, rank, batch, threads.

use std::process::Command;

use anyhow::Context as _;
use serde_json::Value;

use super::{
    peer::{Peer, last_json},
    row::{Row, Target},
};
use crate::{
    command::{cargo, must, output},
    workspace::{binary, root},
};

/// Into how many micro-batches a job's step is cut by default, so that a gang can share it.
const SERVICE_MICRO_BATCHES: u32 = 8;

/// One fine-tuning, told to both sides with the same options.
#[derive(Debug, Clone)]
pub struct Run {
    /// LoRA rank; alpha is twice that.
    pub rank: u32,
    /// Optimizer steps.
    pub steps: u32,
    /// Examples a step.
    pub batch: u32,
    /// Peak learning rate; linear schedule, no warm-up.
    pub lr: f64,
    /// Threads that compute.
    pub threads: usize,
    /// Whether the evaluation set is evaluated at the end.
    pub eval: bool,
}

impl Run {
    fn args(&self) -> Vec<String> {
        let example = |name: &str| root().join("examples").join(name).display().to_string();
        let mut args = vec![
            "--base".to_owned(),
            example("base"),
            "--train".to_owned(),
            example("games/train.jsonl"),
            "--targets".to_owned(),
            "all-linear".to_owned(),
        ];
        if self.eval {
            args.extend(["--eval".to_owned(), example("games/validation.jsonl")]);
        }
        let numbers = [
            ("--rank", self.rank.to_string()),
            ("--alpha", (2 * self.rank).to_string()),
            ("--steps", self.steps.to_string()),
            ("--batch", self.batch.to_string()),
            ("--seq-len", "256".to_owned()),
            ("--lr", self.lr.to_string()),
            ("--threads", self.threads.to_string()),
        ];
        args.extend(numbers.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        args
    }

    /// Ours: as many runs as `seeds`, each step cut into `micro_batches`.
    ///
    /// # Errors
    /// When it does not build, run, or print its figures.
    pub fn ours(&self, seeds: u64, micro_batches: u32) -> anyhow::Result<Value> {
        let mut args = self.args();
        args.extend(["--seeds".to_owned(), seeds.to_string()]);
        args.extend(["--micro-batches".to_owned(), micro_batches.to_string()]);
        eprintln!("ours: train_speed {}", args.join(" "));
        // The whole workspace, so that cargo chooses the features of the tests and compiles nothing twice.
        must(&mut cargo(&["build", "--workspace", "--example", "train_speed"]))?;
        let text = output(Command::new(binary("examples/train_speed")).args(&args))?;
        last_json(&text).context("train_speed did not print its figures")
    }

    /// The peer's, with one seed.
    ///
    /// # Errors
    /// When it does not run or print its figures.
    pub fn peers(&self, peer: &Peer, seed: u64) -> anyhow::Result<Value> {
        let mut args = self.args();
        args.extend(["--seed".to_owned(), seed.to_string()]);
        peer.train(&args)
    }
}

/// A figure by name.
///
/// # Errors
/// When it is not there.
pub fn figure(figures: &Value, name: &str) -> anyhow::Result<f64> {
    figures[name].as_f64().with_context(|| format!("no {name} among the figures {figures}"))
}

/// Cores of this machine.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

pub fn run() -> anyhow::Result<Vec<Row>> {
    let peer = Peer::find();
    let run = Run { rank: 16, steps: 40, batch: 16, lr: 2e-3, threads: cores(), eval: false };
    let theirs = peer.as_ref().map(|peer| run.peers(peer, 0)).transpose()?;
    let whole = run.ours(1, 1)?;
    let cut = run.ours(1, SERVICE_MICRO_BATCHES)?;
    let row = |ours: &Value, what: &str, name: &str, scale: f64, target: Target| -> anyhow::Result<Row> {
        let peer = theirs.as_ref().map(|theirs| figure(theirs, name)).transpose()?;
        Ok(Row {
            name: format!("{what}, rank 16 on all linear layers, {} threads", run.threads),
            ours: scale * figure(ours, name)?,
            peer: peer.map(|peer| scale * peer),
            target,
        })
    };
    let in_eighths = format!("training tokens/s in {SERVICE_MICRO_BATCHES} micro-batches");
    Ok(vec![
        row(&whole, "training tokens/s", "tokens_per_s", 1.0, Target::TimesPeer(1.0))?,
        row(&cut, &in_eighths, "tokens_per_s", 1.0, Target::TimesPeer(1.0))?,
        row(&whole, "step, ms", "step_ms", 1.0, Target::None)?,
        row(&whole, "peak memory, MB", "peak_bytes", 1e-6, Target::None)?,
    ])
}
