"""Command R (Cohere, 2024): parallel blocks with one LayerNorm without bias, rotations of neighbours, scaled logits."""

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
COHERE_MODULES = MODULES | stored(
    paired=True, q="model.layers.{layer}.self_attn.q_proj", k="model.layers.{layer}.self_attn.k_proj"
)


def cohere(
    fields: Fields, layers: Sequence[_C.LayerSpec] | None = None, ropes: Sequence[_C.RopeSpec] | None = None
) -> _C.ModelSpec:
    """Read what Command R and R7B share."""
    if fields.flag("use_qk_norm"):
        raise fields.error("use_qk_norm", "false: dlf has no LayerNorm of heads")
    norm = _C.NormSpec(kind="layer", epsilon=epsilon(fields, "layer_norm_eps"), shared=True)
    scale = multiplier(fields, "logit_scale")
    return decoder(fields, layers, ropes, norm, biases(fields), parallel=True, logit_multiplier=scale)


FAMILY = Family(
    architecture="CohereForCausalLM", model_type="cohere", defaults=DEFAULTS, spec=cohere, modules=COHERE_MODULES
)
