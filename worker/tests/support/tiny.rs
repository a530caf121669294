//! A base of a few thousand weights with the example's tokenizer: hundreds of steps in a moment.

use std::path::Path;

use serde_json::{Map, Value, json};

const HIDDEN: usize = 16;
const MLP: usize = 32;
const LAYERS: usize = 2;
const VOCABULARY: usize = 4096;
const COPIED: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

/// Writes it into a folder; `example` is the example's base.
pub fn write(example: &Path, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for name in COPIED {
        std::fs::copy(example.join(name), folder.join(name)).unwrap();
    }
    let text = std::fs::read_to_string(example.join("config.json")).unwrap();
    let mut config: Map<String, Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(config["vocab_size"], json!(VOCABULARY));
    for (key, value) in [
        ("hidden_size", HIDDEN),
        ("intermediate_size", MLP),
        ("num_hidden_layers", LAYERS),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 1),
        ("head_dim", 8),
    ] {
        config.insert(key.to_owned(), json!(value));
    }
    config.insert("dtype".to_owned(), json!("float32"));
    std::fs::write(folder.join("config.json"), Value::Object(config).to_string()).unwrap();
    std::fs::write(folder.join("model.safetensors"), weights()).unwrap();
}

/// The weights as safetensors: its header's length, the header, the values.
fn weights() -> Vec<u8> {
    let mut tensors = vec![("model.embed_tokens".to_owned(), vec![VOCABULARY, HIDDEN])];
    for layer in 0..LAYERS {
        let modules: [(&str, &[usize]); 9] = [
            ("input_layernorm", &[HIDDEN]),
            ("self_attn.q_proj", &[16, HIDDEN]),
            ("self_attn.k_proj", &[8, HIDDEN]),
            ("self_attn.v_proj", &[8, HIDDEN]),
            ("self_attn.o_proj", &[HIDDEN, 16]),
            ("post_attention_layernorm", &[HIDDEN]),
            ("mlp.gate_proj", &[MLP, HIDDEN]),
            ("mlp.up_proj", &[MLP, HIDDEN]),
            ("mlp.down_proj", &[HIDDEN, MLP]),
        ];
        let name = |module| format!("model.layers.{layer}.{module}");
        tensors.extend(modules.into_iter().map(|(module, shape)| (name(module), shape.to_vec())));
    }
    tensors.push(("model.norm".to_owned(), vec![HIDDEN]));
    let (mut header, mut values) = (Map::new(), Vec::new());
    let mut seed = 1u32;
    for (name, shape) in tensors {
        let start = values.len();
        for _ in 0..shape.iter().product() {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = (seed >> 8) as f32 / 16_777_216.0 - 0.5;
            let value: f32 = if shape.len() == 1 { 1.0 } else { 0.4 * noise };
            values.extend_from_slice(&value.to_le_bytes());
        }
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, values.len()] });
        header.insert(format!("{name}.weight"), entry);
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &values].concat()
}
