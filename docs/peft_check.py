#!/usr/bin/env python3
"""Loads an adapter that lorafleet wrote in PEFT, and compares its logits with lorafleet's own.

usage: peft_check.py --base DIR --adapter DIR [--prompt TEXT] [--worker target/debug/lorafleet-worker]

Exits with 1 when they differ by more than 1e-4, absolute and relative.
"""
import argparse
import json
import subprocess
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--base", required=True)
parser.add_argument("--adapter", required=True)
parser.add_argument("--prompt", default="Describe the Debian package moon-lander: game based on the classic moon lander")
parser.add_argument("--worker", default="target/debug/lorafleet-worker")
args = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(args.base)
chat = [{"role": "user", "content": args.prompt}]
text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
tokens = tokenizer(text, add_special_tokens=False)["input_ids"]

model = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32)
model = PeftModel.from_pretrained(model, args.adapter).eval()
with torch.no_grad():
    theirs = model(input_ids=torch.tensor([tokens])).logits[0]

command = [args.worker, "logits", "--base", args.base, "--adapter", args.adapter]
command += ["--tokens", ",".join(map(str, tokens))]
ours = torch.tensor(json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["logits"])

print(f"tokens compared         {len(tokens)}")
print(f"largest logit           {theirs.abs().max():.2f}")
print(f"largest difference      {(ours - theirs).abs().max():.1e}")
if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4):
    sys.exit("the logits differ")
print("ok: PEFT computes what lorafleet computes")
