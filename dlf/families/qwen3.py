"""Qwen3 (Yang et al., arXiv 2505.09388): Qwen2 with normed heads in place of the biases."""

from __future__ import annotations

from dlf import _C
from dlf.families import qwen2
from dlf.families.family import Family, biases, decoder
from dlf.support.fields import Fields

__all__ = ["FAMILY"]


def _spec(fields: Fields) -> _C.ModelSpec:
    return decoder(fields, qwen2.windowed_layers(fields), attention={"head_norm": "shared", **biases(fields)})


FAMILY = Family(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    defaults=qwen2.DEFAULTS | {"head_dim": 128},
    spec=_spec,
)
