#!/usr/bin/env python3
"""Write reference.safetensors and groups.json: what PyTorch, bitsandbytes and PEFT make of the same gradients.

usage: generate.py OUT

Two tensors are trained for STEPS steps, `large` (4400 values: 8-bit moments, its last block not whole) and `small`
(35). Gradients are those of `gradient` below, which the test makes again bit for bit.

reference.safetensors: weights/<optimizer>/<tensor> after all steps; codes/<optimizer>/<buffer> and
absmax/<optimizer>/<buffer> of `large`; map/signed and map/unsigned, bitsandbytes' code tables.
groups.json: key, dimensions, learning rate and weight decay of each tensor in PEFT's LoRA+ optimizer.

Needs: torch, transformers, peft, bitsandbytes. The 8-bit update is bitsandbytes' plain PyTorch one
(backends/triton/kernels_optim.py), which codes to the nearest value as its CUDA kernel does; its CPU kernel looks
values up in a coarser table.
"""
import ast, json, math, sys, typing
from pathlib import Path

import bitsandbytes as bnb, bitsandbytes.functional as F, torch
from safetensors.torch import save_file

STEPS, LR, DECAY = 6, 1e-2, 0.1
BETAS, EPS, MOMENTUM = (0.9, 0.99), 1e-8, 0.9
SHAPES = {"large": (40, 110), "small": (5, 7)}


def gradient(first, shape, step):
    """Numbers of many magnitudes, exact in f32."""
    n = torch.arange(first, first + shape.numel(), dtype=torch.int64)
    hashed = (n * 2654435761 + step * 40503) % 4294967296
    values = ((hashed % 2001) - 1000).double() * 2.0 ** -((hashed // 2048) % 16).double() / 1024
    return values.float().reshape(shape)


def parameters():
    first, made = 0, {}
    for name, shape in SHAPES.items():
        shape = torch.Size(shape)
        made[name] = (first, torch.nn.Parameter(gradient(first, shape, 0)))
        first += shape.numel()
    return made


def train(make):
    tensors = parameters()
    optimizer = make([parameter for _, parameter in tensors.values()])
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = LR * step / STEPS
        for first, parameter in tensors.values():
            parameter.grad = gradient(first, parameter.shape, step)
        optimizer.step()
    return {name: parameter.data for name, (_, parameter) in tensors.items()}, optimizer, tensors


def plain_8bit_update():
    """bitsandbytes' PyTorch implementation: those functions of a file whose other parts need triton."""
    wanted = {"_dequantize_blockwise_pytorch", "_quantize_blockwise_pytorch", "optimizer_update_8bit_blockwise_pytorch"}
    tree = ast.parse((Path(bnb.__file__).parent / "backends/triton/kernels_optim.py").read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", None) in wanted]
    for node in tree.body:
        node.decorator_list = []
    scope = {"math": math, "torch": torch, "Optional": typing.Optional}
    exec(compile(tree, "kernels_optim.py", "exec"), scope)
    return scope["optimizer_update_8bit_blockwise_pytorch"]


def adamw_8bit(out):
    update, signed, unsigned = plain_8bit_update(), F.create_dynamic_map(True), F.create_dynamic_map(False)
    first, large = parameters()["large"]
    blocks = -(-large.numel() // 256)
    m, v = torch.zeros(large.numel(), dtype=torch.uint8), torch.zeros(large.numel(), dtype=torch.uint8)
    scales = [torch.zeros(blocks), torch.zeros(blocks)]
    flat = large.data.flatten().clone()
    for step in range(1, STEPS + 1):
        update(flat, gradient(first, large.shape, step).flatten(), m, v, *BETAS, 0.0, 0.0, EPS, step, LR * step / STEPS,
               signed, unsigned, *scales, DECAY, 1.0, False, optimizer_name="adam")
    out["weights/adamw_8bit/large"] = flat.reshape(large.shape)
    for name, codes, scale in (("exp_avg", m, scales[0]), ("exp_avg_sq", v, scales[1])):
        out[f"codes/adamw_8bit/{name}"], out[f"absmax/adamw_8bit/{name}"] = codes, scale
    # Below 4096 values the moments stay in f32: bitsandbytes' own optimizer, and its own choice.
    out["weights/adamw_8bit/small"] = train(
        lambda p: bnb.optim.AdamW8bit(p, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY))[0]["small"]


def groups():
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer
    from transformers import AutoConfig, AutoModelForSequenceClassification
    config = AutoConfig.for_model("bert", hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                                  num_attention_heads=2, vocab_size=31, num_labels=3)
    model = get_peft_model(AutoModelForSequenceClassification.from_config(config), LoraConfig(
        r=2, target_modules=["query", "word_embeddings"], modules_to_save=["classifier"], use_dora=True))
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0,
                                          loraplus_weight_decay=0.01)
    names = {id(parameter): (name, parameter) for name, parameter in model.named_parameters()}
    rows = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name, parameter = names[id(parameter)]
            key = name.replace(".default", "").replace("modules_to_save.", "")
            rows.append(dict(key=key, dimensions=parameter.ndim, lr=group["lr"], weight_decay=group["weight_decay"]))
    return sorted(rows, key=lambda row: row["key"])


def main():
    folder = Path(sys.argv[1])
    out = {"map/signed": F.create_dynamic_map(True), "map/unsigned": F.create_dynamic_map(False)}
    makers = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY),
        "sgd": lambda p: torch.optim.SGD(p, lr=LR, momentum=MOMENTUM, weight_decay=DECAY),
        "sgd_plain": lambda p: torch.optim.SGD(p, lr=LR, weight_decay=DECAY),
        "lion": lambda p: bnb.optim.Lion(p, lr=LR, betas=BETAS, weight_decay=DECAY),
    }
    for name, make in makers.items():
        for tensor, values in train(make)[0].items():
            out[f"weights/{name}/{tensor}"] = values.clone()
    adamw_8bit(out)
    save_file(out, folder / "reference.safetensors")
    (folder / "groups.json").write_text(json.dumps(groups(), indent=1) + "\n")


main()
