//! `lorafleet-worker classify`: labels of texts, by a classifier of this machine, with or without an adapter.

use std::path::Path;

use anyhow::{Context as _, ensure};
use lorafleet_lora::{adapter::Adapter, base::Base, model::PackedBatch};
use lorafleet_spec::{
    base::Head,
    data::{Example, Target, Tokenizer},
    job::Precision,
    metrics::argmax,
};
use serde_json::{Value, json};

use crate::config::{ClassifyArgs, cores};

/// Prints what is predicted of each text.
///
/// # Errors
/// A folder is no base or adapter, or a text cannot be read.
pub fn run(args: &ClassifyArgs) -> anyhow::Result<()> {
    let threads = args.threads.map_or_else(cores, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().context("start the threads")?;
    let (labels, rows) = pool.install(|| classify(args))?;
    for (text, row) in args.text.iter().zip(rows.chunks_exact(labels.len().max(1))) {
        let found = Prediction::new(&labels, row);
        if args.json {
            println!("{}", found.json(text));
        } else {
            println!("{}", found.line(text));
        }
    }
    Ok(())
}

/// Names of the classes (none: a score is predicted), and the logits of all texts.
fn classify(args: &ClassifyArgs) -> anyhow::Result<(Vec<String>, Vec<f32>)> {
    let labels = labels(&args.base, args.adapter.as_deref())?;
    let head = Head::Classifier { labels: labels.len().max(1) };
    let of_base = || format!("the base {}", args.base.display());
    let base = Base::load_as(&args.base, head, Precision::F32).with_context(of_base)?;
    let tokenizer = Tokenizer::load(&args.base).with_context(of_base)?;
    let load = |dir: &std::path::PathBuf| {
        Adapter::load(dir, base.shape(), &|name| base.tensor(name))
            .with_context(|| format!("the adapter {}", dir.display()))
    };
    let adapter = args.adapter.as_ref().map(load).transpose()?;
    ensure!(
        adapter.is_some() || base.shape().fresh.is_empty(),
        "the base {} has no trained classifier: give an adapter that has one",
        args.base.display()
    );
    let (view, positions) = (adapter.as_ref().map(Adapter::view), base.shape().max_positions);
    let mut rows = Vec::new();
    for text in &args.text {
        let texts = tokenizer.encode_texts(text, args.second.as_deref(), positions)?;
        // The target is not looked at.
        let example = Example { tokens: texts.tokens, second: texts.second, target: Target::Class(0) };
        rows.extend(base.model().predict(&PackedBatch::new(&[&example])?, view.as_ref())?);
    }
    Ok((labels, rows))
}

/// The labels beside the adapter, else those of the base's configuration; none where a score is predicted.
fn labels(base: &Path, adapter: Option<&Path>) -> anyhow::Result<Vec<String>> {
    if let Some(dir) = adapter {
        let path = dir.join("labels.json");
        return match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| path.display().to_string()),
            // What was trained on scores has none.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        };
    }
    let path = base.join("config.json");
    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let config: Value = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    let name = |class: usize| config["id2label"][class.to_string()].as_str().map(str::to_owned);
    let names: Vec<String> = (0..).map_while(name).collect();
    Ok(if config["problem_type"] == "regression" { Vec::new() } else { names })
}

/// What is predicted of one text.
enum Prediction<'a> {
    Score(f32),
    /// The likeliest label, and all with their probabilities.
    Class(&'a str, Vec<(&'a str, f64)>),
}

impl<'a> Prediction<'a> {
    fn new(labels: &'a [String], logits: &[f32]) -> Self {
        if labels.is_empty() {
            return Self::Score(logits[0]);
        }
        let most = f64::from(logits[argmax(logits)]);
        let powers: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit) - most).exp()).collect();
        let sum: f64 = powers.iter().sum();
        let chances = labels.iter().zip(powers).map(|(label, power)| (label.as_str(), power / sum)).collect();
        Self::Class(&labels[argmax(logits)], chances)
    }

    fn json(&self, text: &str) -> Value {
        match self {
            Self::Score(score) => json!({ "text": text, "score": score }),
            Self::Class(label, chances) => {
                let chances: serde_json::Map<String, Value> =
                    chances.iter().map(|(label, chance)| ((*label).to_owned(), json!(chance))).collect();
                json!({ "text": text, "label": label, "probabilities": chances })
            }
        }
    }

    fn line(&self, text: &str) -> String {
        match self {
            Self::Score(score) => format!("{score:.4}  {text}"),
            Self::Class(label, chances) => {
                let mut chances = chances.clone();
                chances.sort_by(|(_, a), (_, b)| b.total_cmp(a));
                let next =
                    chances.iter().skip(1).take(2).map(|(label, p)| format!("{label} {:.1} %", 100.0 * p));
                let next: Vec<String> = next.collect();
                format!("{label} {:.1} % ({})  {text}", 100.0 * chances[0].1, next.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_a_softmax() {
        let labels = ["no".to_owned(), "yes".to_owned()];
        let found = Prediction::new(&labels, &[0.0, 3f32.ln()]);
        let Prediction::Class(label, chances) = &found else { panic!("a class") };
        assert_eq!(*label, "yes");
        assert!((chances[0].1 - 0.25).abs() < 1e-6);
        assert_eq!(found.line("it is"), "yes 75.0 % (no 25.0 %)  it is");
        assert_eq!(Prediction::new(&[], &[0.5]).line("it is"), "0.5000  it is");
    }
}
