"""Phi 1, 1.5 and 2 (arXiv 2306.11644, 2309.05463): parallel blocks with one LayerNorm, no gates, biases everywhere."""

from __future__ import annotations

from dlf import _C
from dlf.families.family import COMMON_DEFAULTS, MODULES, Family, attention_sizes, decoder, epsilon
from dlf.families.parts import stored
from dlf.families.rope import read_rotary
from dlf.support.fields import Fields

__all__ = ["FAMILY"]


def _spec(fields: Fields) -> _C.ModelSpec:
    normed = fields.flag("qk_layernorm")
    return decoder(
        fields,
        ropes=[read_rotary(fields, attention_sizes(fields)["head_dim"], partial=True)],
        norm=_C.NormSpec(kind="layer", epsilon=epsilon(fields, "layer_norm_eps"), bias=True, shared=True),
        attention={
            "bias": True,
            "output_bias": True,
            "head_norm": "shared" if normed else "none",
            "head_norm_bias": normed,
        },
        feed_forward={"gated": False, "bias": True},
        parallel=True,
        head_bias=True,
    )


FAMILY = Family(
    architecture="PhiForCausalLM",
    model_type="phi",
    defaults=COMMON_DEFAULTS
    | {
        "vocab_size": 51200,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "hidden_act": "gelu_new",
        "max_position_embeddings": 2048,
        "partial_rotary_factor": 0.5,
        "layer_norm_eps": 1e-5,
        "qk_layernorm": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    spec=_spec,
    modules=MODULES
    | stored(
        o="model.layers.{layer}.self_attn.dense",
        up="model.layers.{layer}.mlp.fc1",
        down="model.layers.{layer}.mlp.fc2",
        q_norm="model.layers.{layer}.self_attn.q_layernorm",
        k_norm="model.layers.{layer}.self_attn.k_layernorm",
        norm="model.final_layernorm",
    ),
)
