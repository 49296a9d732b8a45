"""Granite 3 (IBM, 2024): Llama with factors on embeddings, scores, residual branches and logits."""

from __future__ import annotations

from dlf import _C
from dlf.families.family import COMMON_DEFAULTS, Family, decoder, multiplier
from dlf.support.fields import Fields

__all__ = ["FAMILY"]


def _spec(fields: Fields) -> _C.ModelSpec:
    bias = fields.flag("attention_bias")
    return decoder(
        fields,
        attention={
            "query_scalar": multiplier(fields, "attention_multiplier") ** -2,
            "bias": bias,
            "output_bias": bias,
        },
        feed_forward={"bias": fields.flag("mlp_bias")},
        embedding_multiplier=multiplier(fields, "embedding_multiplier"),
        residual_multiplier=multiplier(fields, "residual_multiplier"),
        logit_multiplier=1 / multiplier(fields, "logits_scaling"),
    )


FAMILY = Family(
    architecture="GraniteForCausalLM",
    model_type="granite",
    defaults=COMMON_DEFAULTS
    | {
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    spec=_spec,
)
