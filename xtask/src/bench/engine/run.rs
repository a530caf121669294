//! One fine-tuning on chats, told to both sides with the same options.

use std::{path::PathBuf, process::Command};

use anyhow::Context as _;
use serde_json::Value;

use crate::{
    bench::peer::{Peer, last_json},
    command::{cargo, must, output},
    workspace::{binary, root},
};

/// One fine-tuning: rank 16 or whatever, on all linear layers, on the example's chats of up to 256 tokens.
#[derive(Debug, Clone)]
pub struct Run {
    /// Folder of the base.
    pub base: PathBuf,
    /// LoRA rank; alpha is twice that.
    pub rank: u32,
    /// Train all weights instead.
    pub full: bool,
    /// `f32` or `bf16`.
    pub dtype: &'static str,
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
    /// LoRA of rank 16 on the example's small base.
    pub fn small(steps: u32, eval: bool) -> Self {
        let base = root().join("examples/base");
        let threads = super::cores();
        Self { base, rank: 16, full: false, dtype: "f32", steps, batch: 16, lr: 2e-3, threads, eval }
    }

    fn args(&self) -> Vec<String> {
        let games = |name: &str| root().join("examples/games").join(name).display().to_string();
        let mut args = vec![
            ("--base", self.base.display().to_string()),
            ("--train", games("train.jsonl")),
            ("--targets", "all-linear".to_owned()),
            ("--dtype", self.dtype.to_owned()),
            ("--rank", self.rank.to_string()),
            ("--alpha", (2 * self.rank).to_string()),
            ("--steps", self.steps.to_string()),
            ("--batch", self.batch.to_string()),
            ("--seq-len", "256".to_owned()),
            ("--lr", self.lr.to_string()),
            ("--threads", self.threads.to_string()),
        ];
        if self.eval {
            args.push(("--eval", games("validation.jsonl")));
        }
        let mut args: Vec<_> = args.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
        if self.full {
            args.push("--full".to_owned());
        }
        args
    }

    /// Ours: as many runs as `seeds`, each step cut into `micro_batches`; `more` is passed on.
    ///
    /// # Errors
    /// When it does not build, run, or print its figures.
    pub fn ours(&self, seeds: u64, micro_batches: u32, more: &[&str]) -> anyhow::Result<Value> {
        let mut args = self.args();
        args.extend(["--seeds".to_owned(), seeds.to_string()]);
        args.extend(["--micro-batches".to_owned(), micro_batches.to_string()]);
        args.extend(more.iter().map(|&arg| arg.to_owned()));
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
