"""GLM-4 9B (arXiv 2406.12793): Llama with biases on q, k and v, and neighbours rotated in part of each head."""

from __future__ import annotations

from typing import Any

from dlf import _C
from dlf.families.family import COMMON_DEFAULTS, MODULES, Family, attention_sizes, decoder, epsilon
from dlf.families.parts import fused, stored
from dlf.families.rope import read_rotary
from dlf.support.fields import Fields

__all__ = ["DEFAULTS", "FAMILY", "GLM_MODULES", "glm"]

DEFAULTS: dict[str, Any] = COMMON_DEFAULTS | {
    "vocab_size": 151552,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1.5625e-7,
    "attention_bias": True,
    "eos_token_id": [151329, 151336, 151338],
}
GLM_MODULES = (
    MODULES
    | stored(paired=True, q="model.layers.{layer}.self_attn.q_proj", k="model.layers.{layer}.self_attn.k_proj")
    | fused("model.layers.{layer}.mlp.gate_up_proj", "gate", "up")
)


def glm(fields: Fields, after: bool) -> _C.ModelSpec:
    """Read what GLM-4 models share; those of 2025 have norms `after` attention and feed-forward, too."""
    return decoder(
        fields,
        ropes=[read_rotary(fields, attention_sizes(fields)["head_dim"], partial=True)],
        norm=_C.NormSpec(epsilon=epsilon(fields, "rms_norm_eps"), after=after),
        attention={"bias": fields.flag("attention_bias")},
    )


FAMILY = Family(
    architecture="GlmForCausalLM",
    model_type="glm",
    defaults=DEFAULTS,
    spec=lambda fields: glm(fields, after=False),
    modules=GLM_MODULES,
)
