"""Use a LoRA adapter as an expert: it runs in the base's own pass, and no second model is loaded.

Run it with ``python examples/lora.py``. The example makes the adapter, as the best approximation of rank 16 to
the change that fine-tuning made in the bundled expert. Use an adapter that PEFT saved in the same way.
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import dlf
from dlf import zoo

RANK = 16
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def extract_adapter(base: Path, tuned: Path, folder: Path) -> Path:
    """Write a PEFT folder with the largest singular directions of the difference of two models."""
    before = load_file(base / "model.safetensors")
    after = load_file(tuned / "model.safetensors")
    tensors = {}
    for name in before:
        if name.endswith("_proj.weight"):
            left, sizes, right = torch.linalg.svd(after[name].float() - before[name].float(), full_matrices=False)
            module = "base_model.model." + name.removesuffix(".weight")
            tensors[f"{module}.lora_A.weight"] = right[:RANK].contiguous()
            tensors[f"{module}.lora_B.weight"] = (left[:, :RANK] * sizes[:RANK]).contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "target_modules": MODULES}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


with tempfile.TemporaryDirectory() as folder:
    adapter = extract_adapter(zoo.path("small-base"), zoo.path("math-expert"), Path(folder))
    expert = dlf.Lora(zoo.path("small-base"), adapter, name="math-lora")
    with dlf.Engine(zoo.path("large-base"), experts=[expert]) as engine:
        problem = zoo.problems("math")[0]
        out = engine.generate(problem.prompt, max_new_tokens=64, stop_strings="\n")
        print(f"rank {RANK}:{out.text}")
        print(f"mean alpha of {out.experts[0]}: {out.alpha.mean():.2f}; the answer is {problem.answer}")
