"""Qwen2 (Yang et al., arXiv 2407.10671): biases on q, k and v, and a window in some layers if asked for."""

from __future__ import annotations

from typing import Any

from dlf import _C
from dlf.families.family import COMMON_DEFAULTS, MAX_WINDOW, Family, decoder, layer_count
from dlf.support.fields import Fields

__all__ = ["DEFAULTS", "FAMILY", "windowed_layers"]

DEFAULTS: dict[str, Any] = COMMON_DEFAULTS | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
KINDS = ("full_attention", "sliding_attention")


def windowed_layers(fields: Fields) -> list[_C.LayerSpec]:
    """Return the layers, with a window in those that ``layer_types`` marks, or from ``max_window_layers`` on."""
    count = layer_count(fields)
    given = "sliding_window" in fields and fields.flag("use_sliding_window")
    window = fields.integer("sliding_window", 1, MAX_WINDOW) if given else 0
    if "layer_types" not in fields:
        first = fields.integer("max_window_layers", 0, MAX_WINDOW) if window else count
        return [_C.LayerSpec(window=window if layer >= first else 0) for layer in range(count)]
    types = fields.raw("layer_types")
    if not isinstance(types, list) or len(types) != count or any(kind not in KINDS for kind in types):
        raise fields.error("layer_types", f"a list of {count} times one of {', '.join(KINDS)}")
    if not window and "sliding_attention" in types:
        raise fields.error(
            "sliding_window", "given, and use_sliding_window true, where layer_types has sliding_attention"
        )
    return [_C.LayerSpec(window=window if kind == "sliding_attention" else 0) for kind in types]


def _spec(fields: Fields) -> _C.ModelSpec:
    return decoder(fields, windowed_layers(fields), bias=True)  # whatever the file says


FAMILY = Family(architecture="Qwen2ForCausalLM", model_type="qwen2", defaults=DEFAULTS, spec=_spec)
