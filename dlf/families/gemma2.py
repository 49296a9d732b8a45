"""Gemma 2 (arXiv 2408.00118): norms on both sides, capped scores and logits, a window in every other layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlf import _C
from dlf.families.family import (
    COMMON_DEFAULTS,
    MODULES,
    Family,
    biases,
    decoder,
    epsilon,
    mixed_layers,
    multiplier,
    softcap,
)
from dlf.families.parts import stored
from dlf.support.fields import Fields

__all__ = ["DEFAULTS", "FAMILY", "GEMMA_MODULES", "gemma"]

DEFAULTS: dict[str, Any] = COMMON_DEFAULTS | {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "use_bidirectional_attention": False,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
GEMMA_MODULES = MODULES | stored(
    attention_post_norm="model.layers.{layer}.post_attention_layernorm",
    feed_forward_norm="model.layers.{layer}.pre_feedforward_layernorm",
    feed_forward_post_norm="model.layers.{layer}.post_feedforward_layernorm",
)


def gemma(fields: Fields, period: int, ropes: Sequence[_C.RopeSpec] | None = None, **attention: Any) -> _C.ModelSpec:
    """Read what Gemma 2 and 3 share; every layer but the `period`-th has a window, and the last of `ropes`.

    `attention` are further fields of ``AttentionSpec``.
    """
    if "use_bidirectional_attention" in fields and fields.flag("use_bidirectional_attention"):
        raise fields.error("use_bidirectional_attention", "false: dlf predicts tokens from those before")
    return decoder(
        fields,
        mixed_layers(fields, period, sliding_rope=len(ropes) - 1 if ropes else 0),
        ropes,
        _C.NormSpec(epsilon=epsilon(fields, "rms_norm_eps"), offset=True, after=True),
        attention={
            "query_scalar": multiplier(fields, "query_pre_attn_scalar"),
            **biases(fields),
            **attention,
        },
        activation="hidden_activation",
        embedding_multiplier=fields.integer("hidden_size", 1, 1 << 16) ** 0.5,
        logit_softcap=softcap(fields, "final_logit_softcapping"),
    )


FAMILY = Family(
    architecture="Gemma2ForCausalLM",
    model_type="gemma2",
    defaults=DEFAULTS,
    spec=lambda fields: gemma(fields, period=2, softcap=softcap(fields, "attn_logit_softcapping")),
    modules=GEMMA_MODULES,
)
