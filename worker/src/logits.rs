//! `lorafleet-worker logits`: what the engine computes for some tokens, so that others can be compared with it.

use anyhow::{Context as _, ensure};
use lorafleet_lora::{adapter::Adapter, base::Base, model::PackedBatch};

use crate::config::LogitsArgs;

/// Prints `{"vocabulary": V, "logits": [[…V…], …]}`, a row for each token.
///
/// # Errors
/// A folder is no base or adapter, or a token is none of the base's.
pub fn run(args: &LogitsArgs) -> anyhow::Result<()> {
    let base = Base::load(&args.base).with_context(|| format!("the base {}", args.base.display()))?;
    let adapter = match &args.adapter {
        Some(dir) => Some(
            Adapter::load(dir, base.shape(), &|name| base.tensor(name))
                .with_context(|| format!("the adapter {}", dir.display()))?,
        ),
        None => None,
    };
    let vocabulary = base.model().vocabulary();
    if let Some(token) = args.tokens.iter().find(|token| **token as usize >= vocabulary) {
        anyhow::bail!("--tokens: {token} is no token of this base, which has {vocabulary}");
    }
    let batch = PackedBatch::unlabelled([args.tokens.as_slice()]);
    let view = adapter.as_ref().map(Adapter::view);
    let logits = base.model().logits(&batch, view.as_ref())?;
    ensure!(logits.len() == args.tokens.len() * vocabulary, "the engine gave {} logits", logits.len());
    let rows: Vec<&[f32]> = logits.chunks(vocabulary).collect();
    println!("{}", serde_json::json!({ "vocabulary": vocabulary, "logits": rows }));
    Ok(())
}
