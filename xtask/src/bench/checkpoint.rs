//! What writing checkpoints beside training costs the steps.

use std::process::Command;

use anyhow::Context as _;
use serde_json::Value;

use super::{
    engine::figure,
    peer::last_json,
    row::{Row, Target},
    smollm2,
};
use crate::{
    command::{cargo, must, output},
    workspace::{binary, root},
};

/// A checkpoint a minute.
const MINUTE: f64 = 60.0;

pub fn run() -> anyhow::Result<Vec<Row>> {
    // The whole workspace, so that cargo chooses the features of the tests and compiles nothing twice.
    must(&mut cargo(&["build", "--workspace", "--example", "checkpoint_cost"]))?;
    let small =
        measure(&["--base", &root().join("examples/base").display().to_string(), "--checkpoints", "20"])?;
    let base = smollm2::folder()?.display().to_string();
    let options = ["--full", "--batch", "4", "--between", "10", "--checkpoints", "2"];
    let full = measure(&[&["--base", base.as_str()], options.as_slice()].concat())?;
    let row = |name: &str, ours: f64, target: Target| Row { name: name.to_owned(), ours, peer: None, target };
    let overhead = |figures: &Value| anyhow::Ok(100.0 * figure(figures, "excess_s")? / MINUTE);
    Ok(vec![
        row(
            "the demo's base, LoRA: overhead of one checkpoint a minute, % of the steps' time",
            overhead(&small)?,
            Target::Below(1.0),
        ),
        row(
            "SmolLM2-135M's shape, full: slowest step while its checkpoint uploads at 100 MB/s, over the median of others",
            figure(&full, "slowest_beside")?,
            Target::AtMost(1.1),
        ),
        row(
            "the same: slowest step without one, over their median",
            figure(&full, "slowest_alone")?,
            Target::None,
        ),
        row("the same: size of the checkpoint, GB", 1e-9 * figure(&full, "bytes")?, Target::None),
        row("the same: seconds of its upload", figure(&full, "upload_s")?, Target::None),
        row("the same: overhead of one a minute, % of the steps' time", overhead(&full)?, Target::Below(1.0)),
        row("the same: median step, s", figure(&full, "step_s")?, Target::None),
        row(
            "the same: CPU seconds of the threads that write it",
            figure(&full, "upload_cpu_s")?,
            Target::None,
        ),
        row(
            "the same: CPU seconds that the training threads spend beside it beyond their usual steps",
            figure(&full, "training_cpu_s")?,
            Target::None,
        ),
        row(
            "the same: pages that they touch for the first time",
            figure(&full, "training_faults")?,
            Target::None,
        ),
        row(
            "the same: CPU seconds of the server, which takes it on the same cores and keeps nothing",
            figure(&full, "server_cpu_s")?,
            Target::None,
        ),
    ])
}

fn measure(args: &[&str]) -> anyhow::Result<Value> {
    let train = root().join("examples/games/train.jsonl");
    let mut command = Command::new(binary("examples/checkpoint_cost"));
    command.arg("--train").arg(train).args(args);
    eprintln!("checkpoint_cost {}", args.join(" "));
    last_json(&output(&mut command)?).context("checkpoint_cost did not print its figures")
}
