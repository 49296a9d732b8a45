"""Widens and deepens a model into a larger one with the same output: real behaviour at the cost of a real model.

All added weights are zero: channels of the hidden state, heads, dimensions of a head, channels of the MLP, and whole
layers, which then add nothing to the residual stream. Three adjustments are needed: an RMS norm divides by the mean
over all channels, so its scale and epsilon shrink with the share of real ones; attention divides by the root of the
head's dimensions, so queries grow; and another theta keeps the frequencies of the rotary embedding.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bench.shapes import SHAPES, VOCAB_SIZE

__all__ = ["inflate"]

Tensors = dict[str, torch.Tensor]


def inflate(source: Path, target: Path, shape: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a Llama checkpoint in one of `SHAPES` with the logits of a smaller one.

    Logits above the smaller one's vocabulary are padding, and are 0.

    Parameters
    ----------
    source
        A folder in Hugging Face format: a Llama that fits the shape.
    target
        The folder to write.
    shape
        A name of `bench.shapes.SHAPES`.
    dtype
        Type of the tensors. bfloat16 rounds the changed scales; in float32 the logits are equal to rounding.

    Raises
    ------
    ValueError
        If the model does not fit the shape.
    """
    config = json.loads((source / "config.json").read_text())
    sizes = SHAPES[shape]
    old = _Sizes.of_config(config)
    new = _Sizes(
        sizes["hidden_size"],
        sizes["num_hidden_layers"],
        sizes["heads"],
        sizes["kv_heads"],
        sizes["hidden_size"] // sizes["heads"],
        sizes["intermediate_size"],
        VOCAB_SIZE,
    )
    old.check_fits(new, source.name, shape)
    small = {name: tensor.float() for name, tensor in load_file(source / "model.safetensors").items()}
    target.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.to(dtype).contiguous() for name, tensor in _tensors(small, old, new).items()},
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    theta = config["rope_parameters"]["rope_theta"]
    (target / "config.json").write_text(
        json.dumps(
            config
            | {
                "vocab_size": new.vocab,
                "hidden_size": new.hidden,
                "intermediate_size": new.intermediate,
                "num_hidden_layers": new.layers,
                "num_attention_heads": new.heads,
                "num_key_value_heads": new.kv_heads,
                "head_dim": new.head_dim,
                "rms_norm_eps": config["rms_norm_eps"] * old.hidden / new.hidden,
                # The i-th frequency is theta^(-2i / head_dim).
                "rope_parameters": config["rope_parameters"] | {"rope_theta": theta ** (new.head_dim / old.head_dim)},
                "tie_word_embeddings": False,
                "dtype": str(dtype).removeprefix("torch."),
            },
            indent=2,
        )
    )
    for file in source.glob("token*.json"):
        shutil.copy(file, target)
    return target


@dataclass(frozen=True)
class _Sizes:
    """Sizes of one model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int

    @classmethod
    def of_config(cls, config: dict[str, int]) -> _Sizes:
        return cls(
            config["hidden_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["head_dim"],
            config["intermediate_size"],
            config["vocab_size"],
        )

    @property
    def share(self) -> int:
        """Query heads of one key-value head."""
        return self.heads // self.kv_heads

    def check_fits(self, new: _Sizes, name: str, shape: str) -> None:
        for what in ("hidden", "layers", "kv_heads", "share", "head_dim", "intermediate", "vocab"):
            if getattr(self, what) > getattr(new, what):
                raise ValueError(f"{name} has a {what} of {getattr(self, what)}; {shape} has {getattr(new, what)}")


def _tensors(small: Tensors, old: _Sizes, new: _Sizes) -> Tensors:
    channels = torch.arange(old.hidden)
    # A head keeps its place in its group; the two values of a rotary pair are half a head apart.
    half = torch.arange(old.head_dim // 2)
    inside = torch.cat([half, half + new.head_dim // 2])
    query = torch.cat(
        [(head // old.share * new.share + head % old.share) * new.head_dim + inside for head in range(old.heads)]
    )
    key = torch.cat([head * new.head_dim + inside for head in range(old.kv_heads)])
    inner = torch.arange(old.intermediate)
    words = torch.arange(old.vocab)
    norm_scale = math.sqrt(old.hidden / new.hidden)
    query_scale = math.sqrt(new.head_dim / old.head_dim)
    q_size, kv_size = new.heads * new.head_dim, new.kv_heads * new.head_dim

    head = small.get("lm_head.weight", small["model.embed_tokens.weight"])
    found = {
        "model.embed_tokens.weight": _spread(
            small["model.embed_tokens.weight"], (words, channels), (new.vocab, new.hidden)
        ),
        "model.norm.weight": _spread(small["model.norm.weight"] * norm_scale, (channels,), (new.hidden,)),
        "lm_head.weight": _spread(head, (words, channels), (new.vocab, new.hidden)),
    }
    matrices = {
        "self_attn.q_proj": (query, channels, (q_size, new.hidden), query_scale),
        "self_attn.k_proj": (key, channels, (kv_size, new.hidden), 1.0),
        "self_attn.v_proj": (key, channels, (kv_size, new.hidden), 1.0),
        "self_attn.o_proj": (channels, query, (new.hidden, q_size), 1.0),
        "mlp.gate_proj": (inner, channels, (new.intermediate, new.hidden), 1.0),
        "mlp.up_proj": (inner, channels, (new.intermediate, new.hidden), 1.0),
        "mlp.down_proj": (channels, inner, (new.hidden, new.intermediate), 1.0),
    }
    for layer in range(new.layers):
        prefix = f"model.layers.{layer}."
        real = layer < old.layers
        for name, (rows, columns, size, scale) in matrices.items():
            weight = f"{prefix}{name}.weight"
            found[weight] = _spread(small[weight] * scale, (rows, columns), size) if real else torch.zeros(size)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weight = f"{prefix}{name}.weight"
            found[weight] = (
                _spread(small[weight] * norm_scale, (channels,), (new.hidden,)) if real else torch.ones(new.hidden)
            )
    return found


def _spread(tensor: torch.Tensor, places: Sequence[torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of zeros, with `tensor` at these rows and columns."""
    found = torch.zeros(shape)
    found[torch.meshgrid(*places, indexing="ij") if len(places) > 1 else places[0]] = tensor
    return found
