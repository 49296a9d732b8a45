"""GLM-4 0414 (Z.ai, 2025): GLM-4 with norms after attention and feed-forward, too."""

from __future__ import annotations

from dlf.families.family import Family
from dlf.families.glm import DEFAULTS, GLM_MODULES, glm
from dlf.families.parts import stored

__all__ = ["FAMILY"]

FAMILY = Family(
    architecture="Glm4ForCausalLM",
    model_type="glm4",
    defaults=DEFAULTS,
    spec=lambda fields: glm(fields, after=True),
    modules=GLM_MODULES
    | stored(
        attention_post_norm="model.layers.{layer}.post_self_attn_layernorm",
        feed_forward_post_norm="model.layers.{layer}.post_mlp_layernorm",
    ),
)
