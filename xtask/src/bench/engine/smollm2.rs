//! LoRA and full fine-tuning at the shape of SmolLM2-135M, in f32 and bf16: speed, memory and operations.

use anyhow::Context as _;
use serde_json::Value;

use super::{Run, SERVICE_MICRO_BATCHES, cores, figure};
use crate::bench::{
    peer::Peer,
    row::{Row, Target},
    smollm2,
};

/// Steps of a run; the second half is measured.
const STEPS: u32 = 8;
/// Parameters that a token is multiplied with (the head, but not the embedding), and the adapter's.
const N: f64 = 134_479_872.0;
const P: f64 = 4_884_480.0;

/// What both sides measured; nothing of the peer where there is none.
struct Figures {
    f32: Value,
    f32_cut: Value,
    bf16: Value,
    full: Value,
    peers: Option<Peers>,
}

struct Peers {
    f32: Value,
    bf16: Value,
    full: Value,
    rate_f32: f64,
    rate_bf16: f64,
}

pub fn rows(peer: Option<&Peer>) -> anyhow::Result<Vec<Row>> {
    let figures = measure(peer)?;
    let rows = [speed(&figures)?, memory(&figures)?, full(&figures)?].concat();
    let name = |row: Row| Row { name: format!("SmolLM2-135M's shape: {}", row.name), ..row };
    Ok(rows.into_iter().map(name).collect())
}

fn measure(peer: Option<&Peer>) -> anyhow::Result<Figures> {
    let lora = Run {
        base: smollm2::folder()?,
        rank: 16,
        full: false,
        dtype: "f32",
        steps: STEPS,
        batch: 8,
        lr: 1e-3,
        threads: cores(),
        eval: false,
    };
    let bf16 = Run { dtype: "bf16", ..lora.clone() };
    let full = Run { full: true, lr: 1e-5, ..lora.clone() };
    let rate = ["--product-rate"];
    let ours_f32 = lora.ours(1, 1, &rate)?;
    let ours_bf16 = bf16.ours(1, 1, &rate)?;
    let peers = |peer: &Peer| -> anyhow::Result<Peers> {
        let torch = |ours: &Value, dtype| peer.product_rate(&ours["product_shapes"], dtype, lora.threads);
        Ok(Peers {
            rate_f32: torch(&ours_f32, "f32")?,
            rate_bf16: torch(&ours_bf16, "bf16")?,
            f32: lora.peers(peer, 0)?,
            bf16: bf16.peers(peer, 0)?,
            full: full.peers(peer, 0)?,
        })
    };
    let peers = peer.map(peers).transpose()?;
    let f32_cut = lora.ours(1, SERVICE_MICRO_BATCHES, &[])?;
    Ok(Figures { f32: ours_f32, f32_cut, bf16: ours_bf16, full: full.ours(1, 1, &[])?, peers })
}

fn row(name: &str, ours: f64, peer: Option<f64>, target: Target) -> Row {
    Row { name: name.to_owned(), ours, peer, target }
}

impl Figures {
    /// A figure of the peer's.
    fn peers(&self, of: impl Fn(&Peers) -> &Value, name: &str, scale: f64) -> anyhow::Result<Option<f64>> {
        self.peers.as_ref().map(|peers| Ok(scale * figure(of(peers), name)?)).transpose()
    }

    /// One of our figures beside the peer's.
    fn row(
        &self,
        what: &str,
        ours: &Value,
        peers: impl Fn(&Peers) -> &Value,
        (name, scale): (&str, f64),
        target: Target,
    ) -> anyhow::Result<Row> {
        Ok(row(what, scale * figure(ours, name)?, self.peers(peers, name, scale)?, target))
    }

    /// Operations of a step without the optimizer, over the best rate of the machine's products.
    fn share(&self, ours: &Value, torch: Option<f64>) -> anyhow::Result<f64> {
        let best = figure(ours, "product_flops_per_s")?.max(torch.unwrap_or(0.0));
        Ok(figure(ours, "compute_flops_per_s")? / best)
    }
}

fn speed(f: &Figures) -> anyhow::Result<Vec<Row>> {
    const TOKENS: (&str, f64) = ("tokens_per_s", 1.0);
    let torch = |of: fn(&Peers) -> f64| f.peers.as_ref().map(of);
    let (torch_f32, torch_bf16) = (torch(|p| p.rate_f32), torch(|p| p.rate_bf16));
    let products = |what: &str, ours: &Value, torch: Option<f64>| -> anyhow::Result<Row> {
        let ours = figure(ours, "product_flops_per_s")?;
        Ok(row(what, 1e-9 * ours, torch.map(|rate| 1e-9 * rate), Target::None))
    };
    let flops = figure(&f.f32, "flops_per_token")?;
    Ok(vec![
        products("f32 products of its layers, GFLOP/s, beside torch's", &f.f32, torch_f32)?,
        products("bf16 products of its layers, GFLOP/s, beside torch's", &f.bf16, torch_bf16)?,
        row(
            "f32 LoRA step's operations a second, over the better of these rates (aim 0.85)",
            f.share(&f.f32, torch_f32)?,
            None,
            Target::AtLeast(0.75),
        ),
        row("the same in bf16", f.share(&f.bf16, torch_bf16)?, None, Target::None),
        f.row("f32 LoRA, tokens/s (aim 3×)", &f.f32, |p| &p.f32, TOKENS, Target::TimesPeer(2.2))?,
        f.row(
            &format!("the same, a step in {SERVICE_MICRO_BATCHES} micro-batches, as the service cuts it"),
            &f.f32_cut,
            |p| &p.f32,
            TOKENS,
            Target::TimesPeer(2.2),
        )?,
        f.row("bf16 LoRA, tokens/s (aim 3.5×)", &f.bf16, |p| &p.bf16, TOKENS, Target::TimesPeer(2.0))?,
        row(
            "operations of a LoRA step per real token, MFLOP, beside 4N + 6P without attention",
            1e-6 * flops,
            Some(1e-6 * (4.0 * N + 6.0 * P)),
            Target::AtMostTimesPeer(1.02),
        ),
    ])
}

fn memory(f: &Figures) -> anyhow::Result<Vec<Row>> {
    const PEAK: (&str, f64) = ("peak_bytes", 1e-6);
    let most = Target::AtMostTimesPeer(0.25);
    Ok(vec![
        f.row("f32 LoRA, peak memory, MB (aim 0.15×)", &f.f32, |p| &p.f32, PEAK, most)?,
        f.row(
            &format!("the same in {SERVICE_MICRO_BATCHES} micro-batches (aim 0.15×)"),
            &f.f32_cut,
            |p| &p.f32,
            PEAK,
            most,
        )?,
        f.row("bf16 LoRA, peak memory, MB", &f.bf16, |p| &p.bf16, PEAK, Target::None)?,
    ])
}

fn full(f: &Figures) -> anyhow::Result<Vec<Row>> {
    let ratio = |name: &str| -> anyhow::Result<f64> { Ok(figure(&f.f32, name)? / figure(&f.full, name)?) };
    let peers_ratio = |name: &str| -> anyhow::Result<Option<f64>> {
        let (lora, full) = (f.peers(|p| &p.f32, name, 1.0)?, f.peers(|p| &p.full, name, 1.0)?);
        Ok(lora.zip(full).map(|(lora, full)| lora / full))
    };
    let operations = ratio("flops_per_token").context("operations of both")?;
    Ok(vec![
        f.row(
            "f32 full fine-tuning, tokens/s (aim 2×)",
            &f.full,
            |p| &p.full,
            ("tokens_per_s", 1.0),
            Target::TimesPeer(1.5),
        )?,
        f.row("the same, peak memory, MB", &f.full, |p| &p.full, ("peak_bytes", 1e-6), Target::None)?,
        row(
            "LoRA step without the optimizer over full fine-tuning's, over their operations (aim 1.0)",
            ratio("compute_ms")? / operations,
            None,
            Target::AtMost(1.05),
        ),
        row(
            "LoRA step over full fine-tuning's, whole (0.5 is often claimed)",
            ratio("step_ms")?,
            peers_ratio("step_ms")?,
            Target::None,
        ),
        row(
            "LoRA's peak memory over full fine-tuning's (aim 0.3)",
            ratio("peak_bytes")?,
            peers_ratio("peak_bytes")?,
            Target::AtMost(0.4),
        ),
    ])
}
