"""Granite 3 (IBM, 2024): Llama with factors on embeddings, scores, residual branches and logits."""

from __future__ import annotations

from typing import Any

from dlf import _C
from dlf.families.family import COMMON_DEFAULTS, Family, biases, decoder, multiplier
from dlf.support.fields import Fields

__all__ = ["DEFAULTS", "FAMILY", "granite"]

DEFAULTS: dict[str, Any] = COMMON_DEFAULTS | {
    "vocab_size": 32000,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def granite(fields: Fields, **more: Any) -> _C.ModelSpec:
    """Read what Granite's models share; `more` is what `decoder` takes."""
    return decoder(
        fields,
        attention={"query_scalar": multiplier(fields, "attention_multiplier") ** -2, **biases(fields)},
        embedding_multiplier=multiplier(fields, "embedding_multiplier"),
        residual_multiplier=multiplier(fields, "residual_multiplier"),
        logit_multiplier=1 / multiplier(fields, "logits_scaling"),
        **more,
    )


FAMILY = Family(
    architecture="GraniteForCausalLM",
    model_type="granite",
    defaults=DEFAULTS,
    spec=lambda fields: granite(fields, feed_forward={"bias": fields.flag("mlp_bias")}),
)
