#!/usr/bin/env python3
"""Loads what the engine wrote for the parity cases in PEFT and transformers, and compares the logits.

usage: LORAFLEET_PARITY_KEEP=KEEP cargo nextest run -p lorafleet-lora parity
       loads_in_peft.py KEEP [CASES]      (KEEP must be new; CASES is this file's folder)

For each case: the adapter that was trained here, in PEFT, must give PEFT's own trained logits (within 1e-3 of the largest),
and the base with it merged, in transformers, must give what it gives unmerged (within 1e-4).
"""
import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

keep = Path(sys.argv[1])
cases = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent
failed = []
for written in sorted(keep.iterdir()):
    case = cases / written.name
    if not case.is_dir():
        continue
    expected = load_file(case / "expected.safetensors")
    classify = json.loads((case / "case.json").read_text())["task"] == "classify"
    auto = AutoModelForSequenceClassification if classify else AutoModelForCausalLM
    options = dict(dtype=torch.float32, attn_implementation="eager")
    if classify:
        options["num_labels"] = expected["logits"].shape[1]

    def logits(model):
        ids, mask = expected["input_ids"], expected["attention_mask"]
        with torch.no_grad():
            out = model.eval()(input_ids=ids, attention_mask=mask).logits
        return out if classify else out[mask.bool()]

    adapted = logits(PeftModel.from_pretrained(auto.from_pretrained(case / "base", **options), written / "adapter"))
    theirs = expected["trained_logits"] if classify else expected["trained_logits"][expected["attention_mask"].bool()]
    options.pop("num_labels", None)
    model, report = auto.from_pretrained(written / "merged", output_loading_info=True, **options)
    missing = report["missing_keys"]
    merged = logits(model)
    off = ((adapted - theirs).abs().max() / theirs.abs().max()).item()
    apart = ((merged - adapted).abs() - 1e-4 * adapted.abs()).max().item()
    good = off < 1e-3 and apart < 1e-4 and not missing
    print(f"{written.name:26} adapter off by {off:.1e} of the largest, merged by {(merged - adapted).abs().max():.1e}",
          "" if good else f"FAILED {list(missing)}")
    if not good:
        failed.append(written.name)
sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
