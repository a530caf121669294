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
        eprintln!("peer: peft_train.py {}", args.join(" "));
        let mut command = Command::new(&self.python);
        command.arg(root().join("xtask/peers/peft_train.py")).args(args).current_dir(root());
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
