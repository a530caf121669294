#!/usr/bin/env python3
"""The peer of the product rate: what torch's matrix products reach for the linear layers of a model.

usage: product_rate.py SHAPES --dtype f32|bf16 --threads N      SHAPES: JSON, a list of [in, out, count, rows]

Each shape is measured forward (x·Wᵀ) and backward (dy·W), the best of several runs, and weighed by its count.
Prints one JSON object: flops_per_s.
"""
import argparse, json, time
import torch

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("shapes", type=json.loads)
p.add_argument("--dtype", choices=["f32", "bf16"], default="f32"); p.add_argument("--threads", type=int, required=True)
a = p.parse_args()
torch.set_num_threads(a.threads)
dtype = dict(f32=torch.float32, bf16=torch.bfloat16)[a.dtype]


def best(run, seconds=0.3):
    run(); fastest, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds:
        before = time.perf_counter(); run(); fastest = min(fastest, time.perf_counter() - before)
    return fastest


work = seconds = 0.0
with torch.no_grad():
    for width, outputs, count, rows in a.shapes:
        x, w, dy = (torch.randn(s, dtype=dtype) for s in [(rows, width), (outputs, width), (rows, outputs)])
        y, dx = torch.empty_like(dy), torch.empty_like(x)
        seconds += count * (best(lambda: torch.mm(x, w.t(), out=y)) + best(lambda: torch.mm(dy, w, out=dx)))
        work += 4.0 * count * rows * width * outputs
print(json.dumps(dict(flops_per_s=work / seconds, torch=torch.__version__)))
