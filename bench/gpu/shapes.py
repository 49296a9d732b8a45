"""Llama shapes of the paper with random weights, in dlf and in ``transformers``."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

VOCAB = 32_000


@dataclass(frozen=True)
class Shape:
    """Sizes of one model."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int = VOCAB

    @property
    def layer_parameters(self) -> int:
        key_value = self.hidden_size // self.num_attention_heads * self.num_key_value_heads
        attention = 2 * self.hidden_size * (self.hidden_size + key_value)
        return attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size

    @property
    def weight_bytes(self) -> int:
        """Bytes in bfloat16."""
        ends = 2 * self.vocab_size * self.hidden_size + self.hidden_size
        return 2 * (ends + self.num_hidden_layers * self.layer_parameters)

    def read_bytes(self, context: int) -> int:
        """Bytes that a step of one sequence reads: all weights but the embedding, and the cache."""
        return self.weight_bytes - 2 * self.vocab_size * self.hidden_size + self.cache_bytes(context)

    def cache_bytes(self, context: int) -> int:
        head = self.hidden_size // self.num_attention_heads
        return 2 * 2 * context * self.num_hidden_layers * self.num_key_value_heads * head

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
        }


MODELS = {
    "13B": Shape(5120, 13824, 40, 40, 40),
    "7B": Shape(4096, 11008, 32, 32, 32),
    "1.1B": Shape(2048, 5632, 22, 32, 4),
    "143M": Shape(768, 2048, 15, 12, 4),
    "23M": Shape(256, 704, 6, 4, 4),
    "tiny large": Shape(64, 128, 2, 4, 4, 128),
    "tiny small": Shape(32, 64, 1, 2, 1, 128),
}
# Large model, expert and base.
FAMILIES = {
    "13b+1.1b": ("13B", "1.1B", "1.1B"),
    "13b+7b": ("13B", "7B", "7B"),
    "7b+1.1b": ("7B", "1.1B", "1.1B"),
    "143m+23m": ("143M", "23M", "23M"),
    "tiny": ("tiny large", "tiny small", "tiny small"),
}


def device() -> torch.device:
    """The GPU, or the CPU if the GPU is emulated."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def native_weights(shape: Shape, seed: int, precision: str = "bf16") -> Any:
    """Random weights for `_C.StepLoop`. All layers share their tensors; the loop copies those of each layer.

    Parameters
    ----------
    precision : str
        "bf16", or a kind of quantized weights, whose tiles are drawn directly.
    """
    from dlf import _C
    from dlf.checkpoints.config import read_config
    from dlf.checkpoints.precision import QUANTIZATIONS
    from dlf.checkpoints.quantized import linear_shapes

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape.config()))
        config = read_config(Path(folder))
    generator = torch.Generator(device()).manual_seed(seed)

    def draw_float(size: tuple[int, ...]) -> torch.Tensor:
        made = torch.empty(size, dtype=torch.bfloat16, device=device())
        return made.fill_(1.0) if len(size) == 1 else made.normal_(std=0.02, generator=generator)

    def draw_quantized(kind: str, size: tuple[int, ...]) -> torch.Tensor:
        scale = {"F32": torch.float32, "BF16": torch.bfloat16}.get(kind)
        if scale is not None:
            return torch.full(size, 0.02 / (74 if kind == "F32" else 4.6), dtype=scale, device=device())
        low, high, dtype = (-127, 128, torch.int8) if kind == "I8" else (0, 256, torch.uint8)
        return torch.randint(low, high, size, dtype=dtype, device=device(), generator=generator)

    quantization = QUANTIZATIONS.get(precision)
    layout = {} if quantization is None else quantization.layout(linear_shapes(config))
    wanted = {name: ("", tuple(size)) for name, size in config.tensors().items()}
    wanted |= {name: (one.dtype, one.shape) for name, one in layout.items()}
    drawn: dict[str, torch.Tensor] = {}
    tensors = {}
    for name, (kind, size) in wanted.items():
        key = name.split(".", 3)[3] if name.startswith("model.layers.") else name
        if key not in drawn:
            drawn[key] = draw_quantized(kind, size) if kind else draw_float(size)
        tensors[name] = drawn[key]
    return _C.Weights(config.spec, config.by_slot(tensors))


def transformers_model(shape: Shape, seed: int) -> Any:
    """A random model of this shape in ``transformers``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {key: value for key, value in shape.config().items() if key not in ("architectures", "model_type")}
    config = LlamaConfig(**settings, attn_implementation="sdpa")
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device():
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.to(torch.bfloat16).eval().requires_grad_(False)
