//! The trainer's speed and memory, beside the peer's: same base, data, rank, batch, threads.

mod run;
mod smollm2;

use anyhow::Context as _;
use serde_json::Value;

pub use self::run::Run;
use super::{
    peer::Peer,
    row::{Row, Target},
};

/// Into how many micro-batches a job's step is cut by default, so that a gang can share it.
const SERVICE_MICRO_BATCHES: u32 = 8;

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
    let mut rows = smollm2::rows(peer.as_ref())?;
    rows.extend(small(peer.as_ref())?);
    Ok(rows)
}

/// The example's small base.
fn small(peer: Option<&Peer>) -> anyhow::Result<Vec<Row>> {
    let run = Run::small(40, false);
    let theirs = peer.map(|peer| run.peers(peer, 0)).transpose()?;
    let whole = run.ours(1, 1, &[])?;
    let cut = run.ours(1, SERVICE_MICRO_BATCHES, &[])?;
    let row = |ours: &Value, what: &str, name: &str, scale: f64, target: Target| -> anyhow::Result<Row> {
        let peer = theirs.as_ref().map(|theirs| figure(theirs, name)).transpose()?;
        Ok(Row {
            name: format!("the demo's base: {what}"),
            ours: scale * figure(ours, name)?,
            peer: peer.map(|peer| scale * peer),
            target,
        })
    };
    let speed = Target::TimesPeer(2.5);
    let in_eighths = format!("the same in {SERVICE_MICRO_BATCHES} micro-batches");
    let mut rows = vec![
        row(&whole, "f32 LoRA, tokens/s (aim 4×)", "tokens_per_s", 1.0, speed)?,
        row(&cut, &in_eighths, "tokens_per_s", 1.0, speed)?,
        row(&whole, "f32 LoRA, peak memory, MB", "peak_bytes", 1e-6, Target::None)?,
    ];
    rows.push(bf16_quality()?);
    Ok(rows)
}

/// Evaluation loss after training in bf16, beside our own in f32.
fn bf16_quality() -> anyhow::Result<Row> {
    let run = Run::small(42, true);
    let f32 = figure(&run.ours(1, 1, &[])?, "eval_loss")?;
    let bf16 = figure(&Run { dtype: "bf16", ..run }.ours(1, 1, &[])?, "eval_loss")?;
    Ok(Row {
        name: "the demo's base: evaluation loss after 42 steps in bf16, beside ours in f32 (aim 0.3%)"
            .to_owned(),
        ours: bf16,
        peer: Some(f32),
        target: Target::WithinOfPeer(0.01),
    })
}
