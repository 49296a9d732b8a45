"""OLMo 2 (arXiv 2501.00656): norms after attention and feed-forward, and of whole queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlf import _C
from dlf.families.family import COMMON_DEFAULTS, MODULES, Family, biases, decoder, epsilon
from dlf.families.parts import stored
from dlf.support.fields import Fields

__all__ = ["DEFAULTS", "FAMILY", "OLMO_MODULES", "olmo"]

DEFAULTS: dict[str, Any] = COMMON_DEFAULTS | {
    "vocab_size": 50304,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 50279,
}
OLMO_MODULES = MODULES | stored(
    attention_post_norm="model.layers.{layer}.post_attention_layernorm",
    feed_forward_post_norm="model.layers.{layer}.post_feedforward_layernorm",
)


def olmo(
    fields: Fields, layers: Sequence[_C.LayerSpec] | None = None, ropes: Sequence[_C.RopeSpec] | None = None
) -> _C.ModelSpec:
    """Read what OLMo 2 and 3 share."""
    norm = _C.NormSpec(epsilon=epsilon(fields, "rms_norm_eps"), before=False, after=True)
    return decoder(fields, layers, ropes, norm, attention={"head_norm": "whole", **biases(fields)})


FAMILY = Family(architecture="Olmo2ForCausalLM", model_type="olmo2", defaults=DEFAULTS, spec=olmo, modules=OLMO_MODULES)
