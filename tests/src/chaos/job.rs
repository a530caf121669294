//! The jobs of the fault suite: short, and each with something that could go wrong in a change of gangs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::job_file::examples;

/// What a run trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variant {
    /// Micro-batches that three members cannot share evenly, and evaluations.
    Plain,
    /// More micro-batches than members, and dropout.
    Dropout,
    /// Products in bf16, and one micro-batch for two members.
    Bf16,
}

impl Variant {
    /// All of them.
    pub const ALL: [Variant; 3] = [Variant::Plain, Variant::Dropout, Variant::Bf16];

    /// Its steps, where a run has few faults.
    pub fn steps(self) -> u64 {
        match self {
            Variant::Plain => 40,
            Variant::Dropout => 36,
            Variant::Bf16 => 32,
        }
    }

    /// Writes the job file, for so many steps, and its data below `dir`.
    pub fn write(self, steps: u64, name: &str, dir: &Path, workers: (u32, u32)) -> Result<PathBuf> {
        data(dir, 48)?;
        let (batch, micro, dropout, precision) = match self {
            Variant::Plain => (8, 4, 0.0, "f32"),
            Variant::Dropout => (6, 6, 0.1, "f32"),
            Variant::Bf16 => (4, 4, 0.0, "bf16"),
        };
        let ((min, max), base) = (workers, examples().join("base"));
        let base = base.display();
        let yaml = format!(
            "name: {name}\nbase: {base}\ndata: {{train: train.jsonl, eval: validation.jsonl}}\n\
             adapter: {{rank: 4, alpha: 8, dropout: {dropout}}}\n\
             train: {{steps: {steps}, global_batch: {batch}, micro_batches: {micro}, max_length: 96, lr: 2e-3, seed: 7, precision: {precision}}}\n\
             eval: {{every: 10}}\ncheckpoint: {{every: 5, keep: 3}}\nworkers: {{min: {min}, max: {max}}}\n",
        );
        let path = dir.join(format!("{name}.yaml"));
        fs::write(&path, yaml)?;
        Ok(path)
    }
}

/// A job like the demo's, on a gang of just so many to begin with, that goes on for longer than anybody waits.
pub fn endless(dir: &Path, workers: u32) -> Result<PathBuf> {
    data(dir, usize::MAX)?;
    let base = examples().join("base");
    let yaml = format!(
        "name: endless\nbase: {}\ndata: {{train: train.jsonl}}\nadapter: {{rank: 16, alpha: 32}}\n\
         train: {{steps: 1000000, global_batch: 16, max_length: 256, lr: 1e-4, seed: 0}}\n\
         workers: {{min: {workers}, max: {workers}}}\n",
        base.display(),
    );
    let path = dir.join("endless.yaml");
    fs::write(&path, yaml)?;
    Ok(path)
}

fn data(dir: &Path, lines: usize) -> Result<()> {
    fs::create_dir_all(dir)?;
    for (file, lines) in [("train.jsonl", lines), ("validation.jsonl", 6)] {
        let text = fs::read_to_string(examples().join("games").join(file))?;
        let text: String = text.lines().take(lines).flat_map(|line| [line, "\n"]).collect();
        fs::write(dir.join(file), text)?;
    }
    Ok(())
}
