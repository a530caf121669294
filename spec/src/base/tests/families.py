#!/usr/bin/env python3
"""Writes families.json beside this file: what transformers saves of a tiny model of each family and class.

Needs torch and transformers. Of each: its config.json, its tensors with their shapes as stored, and its linear layers as
[width of input, width of output, has a bias] by their names in the class.
"""
import json, pathlib, tempfile

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=50,
             max_position_embeddings=64)
DECODER = dict(SIZES, num_key_value_heads=2)
FAMILIES = {
    "llama": dict(DECODER, attention_bias=True, mlp_bias=True),
    "mistral": dict(DECODER, sliding_window=8),
    "qwen2": dict(DECODER, num_hidden_layers=2, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "qwen3": dict(DECODER, head_dim=16, attention_bias=True),
    "gemma2": dict(DECODER, num_hidden_layers=2, head_dim=16, query_pre_attn_scalar=12, sliding_window=8),
    "gemma3_text": dict(DECODER, num_hidden_layers=2, head_dim=16, sliding_window=8, sliding_window_pattern=2),
    "phi3": dict(DECODER, pad_token_id=0),
    "gpt2": dict(n_embd=32, n_layer=1, n_head=4, vocab_size=50, n_positions=64),
    "bert": SIZES,
    "roberta": dict(SIZES, pad_token_id=1),
    "xlm-roberta": dict(SIZES, pad_token_id=1),
    "distilbert": dict(dim=32, hidden_dim=48, n_layers=1, n_heads=4, vocab_size=50, max_position_embeddings=64),
}
NOISE = ("id2label", "label2id", "transformers_version", "use_cache", "bos_token_id", "eos_token_id", "dtype")


def linears(model):
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            yield name, [module.in_features, module.out_features, module.bias is not None]
        elif type(module).__name__ == "Conv1D":
            yield name, [*module.weight.shape, True]


def describe(family, head, auto):
    sizes = dict(FAMILIES[family], **({"num_labels": 3} if head == "classifier" else {}))
    model = auto.from_config(AutoConfig.for_model(family, **sizes))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads(pathlib.Path(folder, "config.json").read_text())
        with safe_open(f"{folder}/model.safetensors", "pt") as file:
            tensors = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}
    config = {field: value for field, value in config.items() if field not in NOISE and "dropout" not in field}
    return dict(family=family, head=head, config=config, tensors=tensors, linears=dict(linears(model)))


def main():
    models = []
    for family in FAMILIES:
        models.append(describe(family, "none", AutoModel))
        models.append(describe(family, "classifier", AutoModelForSequenceClassification))
        if family in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2"):
            models.append(describe(family, "language_model", AutoModelForCausalLM))
    lines = ",\n".join(json.dumps(model, separators=(",", ":")) for model in models)
    pathlib.Path(__file__).with_name("families.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
