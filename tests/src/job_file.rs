//! Small job files on the example's base and data.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

/// What a test's job looks like; the rest is as in `examples/`.
#[derive(Clone, Debug)]
pub struct JobFile {
    pub name: &'static str,
    pub steps: u64,
    pub global_batch: u32,
    pub micro_batches: u32,
    pub seed: u64,
    pub checkpoint_every: u64,
    pub eval_every: u64,
    pub workers: (u32, u32),
    /// Lines of the training data that are used.
    pub train_lines: usize,
    pub reduce: &'static str,
    pub precision: &'static str,
    pub dropout: f32,
    pub priority: i32,
}

impl Default for JobFile {
    fn default() -> Self {
        JobFile {
            name: "test",
            steps: 6,
            global_batch: 6,
            micro_batches: 6,
            seed: 1,
            checkpoint_every: 0,
            eval_every: 0,
            workers: (1, 1),
            train_lines: 40,
            reduce: "exact",
            precision: "f32",
            dropout: 0.0,
            priority: 0,
        }
    }
}

impl JobFile {
    /// Writes the job file and its data below `dir`, and returns the file's path.
    pub fn write(&self, dir: &Path) -> Result<PathBuf> {
        let examples = examples();
        fs::create_dir_all(dir)?;
        let head = |file: &str, lines: usize| -> Result<()> {
            let text = fs::read_to_string(examples.join("games").join(file))?;
            let text: String = text.lines().take(lines).flat_map(|l| [l, "\n"]).collect();
            Ok(fs::write(dir.join(file), text)?)
        };
        head("train.jsonl", self.train_lines)?;
        head("validation.jsonl", 6)?;
        let (min, max) = self.workers;
        let yaml = format!(
            "name: {}\nbase: {}\ndata: {{train: train.jsonl, eval: validation.jsonl}}\n\
             adapter: {{rank: 4, alpha: 8, dropout: {}}}\n\
             train: {{steps: {}, global_batch: {}, micro_batches: {}, max_length: 96, lr: 2e-3, seed: {}, reduce: {}, precision: {}}}\n\
             eval: {{every: {}, prompts: [\"Describe the Debian package tetris: falling blocks\"], max_new_tokens: 8}}\n\
             checkpoint: {{every: {}, keep: 3}}\nworkers: {{min: {min}, max: {max}}}\npriority: {}\n",
            self.name,
            examples.join("base").display(),
            self.dropout,
            self.steps,
            self.global_batch,
            self.micro_batches,
            self.seed,
            self.reduce,
            self.precision,
            self.eval_every,
            self.checkpoint_every,
            self.priority,
        );
        let path = dir.join(format!("{}.yaml", self.name));
        fs::write(&path, yaml)?;
        Ok(path)
    }
}

/// The project's examples/ folder.
pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, |root| root.join("examples"))
}
