//! How good the example's adapter is after 42 steps, beside the peer's with the same settings.

use super::{
    engine::{Run, cores, figure},
    peer::Peer,
    row::{Row, Target},
};

/// The order of examples differs between the two sides, so each is averaged over these seeds.
const SEEDS: [u64; 3] = [0, 1, 2];

pub fn run() -> anyhow::Result<Vec<Row>> {
    let peer = Peer::find();
    let run = |seed| Run { rank: 16, steps: 42, batch: 16, lr: 2e-3, seed, threads: cores(), eval: true };
    let loss = |figures: serde_json::Value| figure(&figures, "eval_loss");
    let ours = mean(|seed| run(seed).ours().and_then(loss))?;
    let theirs = peer.as_ref().map(|peer| mean(|seed| run(seed).peers(peer).and_then(loss))).transpose()?;
    Ok(vec![Row {
        name: format!("evaluation loss after 42 steps of 16, mean of {} seeds", SEEDS.len()),
        ours,
        peer: theirs,
        target: Target::AtMostTimesPeer(1.01),
    }])
}

fn mean(measure: impl Fn(u64) -> anyhow::Result<f64>) -> anyhow::Result<f64> {
    let mut sum = 0.0;
    for seed in SEEDS {
        let loss = measure(seed)?;
        eprintln!("seed {seed}: {loss:.5}");
        sum += loss;
    }
    Ok(sum / SEEDS.len() as f64)
}
