"""Command R (Cohere, 2024): parallel blocks with one LayerNorm without bias, rotations of neighbours, scaled logits.

Command R+ also has a LayerNorm of each head of queries and keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlf import _C
from dlf.families.family import COMMON_DEFAULTS, MODULES, Family, biases, decoder, epsilon, multiplier
from dlf.families.parts import stored
from dlf.support.fields import Fields

__all__ = ["COHERE_MODULES", "DEFAULTS", "FAMILY", "cohere"]

DEFAULTS: dict[str, Any] = COMMON_DEFAULTS | {
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "max_position_embeddings": 8192,
    "rope_theta": 5e5,
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "use_qk_norm": False,
    "tie_word_embeddings": True,
    "bos_token_id": 5,
    "eos_token_id": 255001,
}
ATTENTION = "model.layers.{layer}.self_attn"
COHERE_MODULES = (
    MODULES
    | stored(paired=True, q=f"{ATTENTION}.q_proj", k=f"{ATTENTION}.k_proj")
    | stored(paired=True, by_head=True, q_norm=f"{ATTENTION}.q_norm", k_norm=f"{ATTENTION}.k_norm")
)


def cohere(
    fields: Fields, layers: Sequence[_C.LayerSpec] | None = None, ropes: Sequence[_C.RopeSpec] | None = None
) -> _C.ModelSpec:
    """Read what Command R and R7B share."""
    norm = _C.NormSpec(kind="layer", epsilon=epsilon(fields, "layer_norm_eps"), shared=True)
    scale = multiplier(fields, "logit_scale")
    head_norm = "own" if fields.flag("use_qk_norm") else "none"
    attention = {"head_norm": head_norm, **biases(fields)}
    return decoder(fields, layers, ropes, norm, attention, parallel=True, logit_multiplier=scale)


FAMILY = Family(
    architecture="CohereForCausalLM", model_type="cohere", defaults=DEFAULTS, spec=cohere, modules=COHERE_MODULES
)
