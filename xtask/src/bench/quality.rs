//! How good the example's adapter is after 42 steps, beside the peer's with the same settings.

use super::{
    engine::{Run, figure},
    peer::Peer,
    row::{Row, Target},
};

/// The order of examples differs between the two sides, so each is averaged over so many seeds, from 0 on.
const SEEDS: u64 = 3;

pub fn run() -> anyhow::Result<Vec<Row>> {
    let peer = Peer::find();
    let run = Run::small(42, true);
    let ours = run.ours(SEEDS, 1, &[])?;
    let theirs = peer.as_ref().map(|peer| peers_mean(&run, peer)).transpose()?;
    Ok(vec![Row {
        name: format!("evaluation loss after 42 steps of 16, mean of {SEEDS} seeds"),
        ours: figure(&ours, "eval_loss")?,
        peer: theirs,
        target: Target::AtMostTimesPeer(1.01),
    }])
}

fn peers_mean(run: &Run, peer: &Peer) -> anyhow::Result<f64> {
    let mut sum = 0.0;
    for seed in 0..SEEDS {
        let loss = figure(&run.peers(peer, seed)?, "eval_loss")?;
        eprintln!("seed {seed}: {loss:.5}");
        sum += loss;
    }
    Ok(sum / SEEDS as f64)
}
