"""Makes checkpoints of given shapes with random weights: only shapes matter for time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file

from dlf.checkpoints.config import read_config

VOCAB_SIZE = 32000

# Llama shapes: 7B is Llama 2's, 1.1B TinyLlama's, 360M and 135M are SmolLM's with this vocabulary. tiny and micro are
# for trying a benchmark, micro on an emulated device.
SHAPES: dict[str, dict[str, int]] = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "heads": 32, "kv_heads": 32},
    "1.1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "heads": 32, "kv_heads": 4},
    "360M": {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "heads": 15, "kv_heads": 5},
    "143M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 15, "heads": 12, "kv_heads": 4},
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "heads": 9, "kv_heads": 3},
    "micro": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "heads": 2, "kv_heads": 1},
    "tiny": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "heads": 4, "kv_heads": 4},
}


def write_checkpoint(folder: Path, shape: str, seed: int, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Writes a Hugging Face folder with random weights of one of `SHAPES`."""
    sizes = SHAPES[shape]
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": sizes["hidden_size"],
        "intermediate_size": sizes["intermediate_size"],
        "num_hidden_layers": sizes["num_hidden_layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv_heads"],
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": str(dtype).removeprefix("torch."),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    vocabulary = {f"token{i}": i for i in range(VOCAB_SIZE)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="token0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor_shape in read_config(folder).tensors().items():
        tensor = torch.ones(tensor_shape) if len(tensor_shape) == 1 else torch.randn(tensor_shape, generator=generator)
        tensors[name] = (tensor if len(tensor_shape) == 1 else tensor.mul_(0.02)).to(dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
