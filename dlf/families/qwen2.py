"""Qwen2 (Yang et al., arXiv 2407.10671): biases on q, k and v, and a window in some layers if asked for."""

from __future__ import annotations

from typing import Any

from dlf import _C
from dlf.families.family import COMMON_DEFAULTS, MAX_WINDOW, Family, decoder, sliding_layers, window_of
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


def windowed_layers(fields: Fields) -> list[_C.LayerSpec]:
    """Return the layers, with a window in those that ``layer_types`` marks, or from ``max_window_layers`` on."""
    window = window_of(fields) if "sliding_window" in fields and fields.flag("use_sliding_window") else 0
    first = fields.integer("max_window_layers", 0, MAX_WINDOW) if window else 0
    slides = sliding_layers(fields, lambda layer: window > 0 and layer >= first)
    if any(slides) and not window:
        raise fields.error(
            "sliding_window", "given, and use_sliding_window true, where layer_types has sliding_attention"
        )
    return [_C.LayerSpec(window=window if sliding else 0) for sliding in slides]


def _spec(fields: Fields) -> _C.ModelSpec:
    return decoder(fields, windowed_layers(fields), attention={"bias": True})  # whatever the file says


FAMILY = Family(architecture="Qwen2ForCausalLM", model_type="qwen2", defaults=DEFAULTS, spec=_spec)
