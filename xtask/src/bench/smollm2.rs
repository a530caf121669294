//! A base with the shape of SmolLM2-135M and random weights, made on the fly: what a step costs does not depend on them.

use std::{
    fs::{self, File},
    io::BufWriter,
    path::PathBuf,
};

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use crate::workspace::{root, target};

const HIDDEN: usize = 576;
const LAYERS: usize = 30;
const KV: usize = 3 * 64;
const MLP: usize = 1536;
const VOCABULARY: usize = 49_152;
/// Files of the example's base that are used as they are: its tokenizer knows the first 4,096 of the tokens.
const TOKENIZER: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

/// The folder of the base; made in cargo's target folder on first use.
///
/// # Errors
/// When it cannot be written.
pub fn folder() -> anyhow::Result<PathBuf> {
    let folder = target().join("bench/smollm2-135m-random");
    if folder.join("model.safetensors").exists() {
        return Ok(folder);
    }
    eprintln!("making a random base of SmolLM2-135M's shape in {}", folder.display());
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for name in TOKENIZER {
        let from = root().join("examples/base").join(name);
        fs::copy(&from, folder.join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    fs::write(folder.join("config.json"), format!("{:#}", config()))?;
    // Under another name until it is whole.
    let unfinished = folder.join("model.unfinished");
    write_weights(BufWriter::new(File::create(&unfinished)?)).context("cannot write the weights")?;
    fs::rename(&unfinished, folder.join("model.safetensors"))?;
    Ok(folder)
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "intermediate_size": MLP,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": true,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "max_position_embeddings": 8192,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
        "initializer_range": 0.02,
        "torch_dtype": "bfloat16",
    })
}

/// Every tensor with its shape, in the order of the file.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN])];
    for layer in 0..LAYERS {
        let modules: [(&str, Vec<usize>); 9] = [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KV, HIDDEN]),
            ("self_attn.v_proj", vec![KV, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![MLP, HIDDEN]),
            ("mlp.up_proj", vec![MLP, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, MLP]),
        ];
        let name = |module| format!("model.layers.{layer}.{module}.weight");
        tensors.extend(modules.into_iter().map(|(module, shape)| (name(module), shape)));
    }
    tensors.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    tensors
}

/// Writes the weights as safetensors in bf16: its header's length, the header, the values.
fn write_weights(mut out: impl std::io::Write) -> std::io::Result<()> {
    let tensors = tensors();
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in &tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] }));
    }
    let header = Value::Object(header).to_string();
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    let mut noise = Noise(0x5170_11a2);
    for (_, shape) in &tensors {
        let norm = shape.len() == 1;
        for _ in 0..shape.iter().product() {
            let value = if norm { 1.0 } else { 0.02 * noise.next() };
            // Cut off, not rounded: it is noise.
            out.write_all(&((value.to_bits() >> 16) as u16).to_le_bytes())?;
        }
    }
    out.flush()
}

/// A seeded stream of numbers of mean 0 and variance 1, nearly normal: sums of four uniform ones (splitmix64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        let sum: u64 = (0..4).map(|i| (x >> (16 * i)) & 0xffff).sum();
        (sum as f32 / 65_535.0 - 2.0) * 3f32.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_has_its_parameters() {
        let parameters: usize = tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(parameters, 134_515_008);
    }

    #[test]
    fn noise_has_mean_zero_and_variance_one() {
        let mut noise = Noise(1);
        let values: Vec<f32> = (0..100_000).map(|_| noise.next()).collect();
        let mean = values.iter().sum::<f32>() / 1e5;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
