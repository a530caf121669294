//! The peer of the engine: transformers with PEFT, run by `xtask/peers/peft_train.py`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use serde_json::Value;

use crate::{command::output, workspace::root};

/// A Python that has torch, transformers and peft.
#[derive(Debug)]
pub struct Peer {
    python: PathBuf,
}

impl Peer {
    /// The Python of LORAFLEET_PEER_PYTHON, else the one in `.venv`; says so when neither can be used.
    pub fn find() -> Option<Self> {
        let python = match std::env::var_os("LORAFLEET_PEER_PYTHON").filter(|path| !path.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => root().join(".venv/bin/python"),
        };
        let import = Command::new(&python).args(["-c", "import torch, transformers, peft"]).output();
        if import.is_ok_and(|output| output.status.success()) {
            return Some(Self { python });
        }
        eprintln!(
            "no peer: {} does not run or lacks torch, transformers or peft; only ours is measured. Make one with\n  \
             python3 -m venv .venv && .venv/bin/pip install torch transformers peft\nor set LORAFLEET_PEER_PYTHON",
            python.display()
        );
        None
    }

    /// The interpreter.
    pub fn python(&self) -> &Path {
        &self.python
    }

    /// Runs one fine-tuning and returns what it measured.
    ///
    /// # Errors
    /// When it fails, or does not print JSON.
    pub fn train(&self, args: &[String]) -> anyhow::Result<Value> {
        self.script("peft_train.py", args)
    }

    /// Operations per second of torch's products for linear layers, each `[in, out, count, rows]`.
    ///
    /// # Errors
    /// As [`Peer::train`].
    pub fn product_rate(&self, shapes: &Value, dtype: &str, threads: usize) -> anyhow::Result<f64> {
        let args = [&shapes.to_string(), "--dtype", dtype, "--threads", &threads.to_string()];
        let figures = self.script("product_rate.py", &args.map(str::to_owned))?;
        figures["flops_per_s"].as_f64().context("the peer did not print its rate")
    }

    fn script(&self, name: &str, args: &[String]) -> anyhow::Result<Value> {
        eprintln!("peer: {name} {}", args.join(" "));
        let mut command = Command::new(&self.python);
        command.arg(root().join("xtask/peers").join(name)).args(args).current_dir(root());
        let text = output(&mut command)?;
        last_json(&text).context("the peer did not print its figures")
    }
}

/// The last line that is a JSON object.
pub fn last_json(text: &str) -> Option<Value> {
    text.lines().rev().find_map(|line| serde_json::from_str(line).ok().filter(Value::is_object))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_the_last_object() {
        let text = "warning: {}\n{\"tokens_per_s\": 3.5}\n7\n";
        assert_eq!(last_json(text).unwrap()["tokens_per_s"], 3.5);
        assert!(last_json("nothing").is_none());
    }
}
