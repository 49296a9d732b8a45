"""OLMoE (Muennighoff et al., arXiv 2409.02060): experts in every layer, norms of whole queries and keys."""

from __future__ import annotations

from dlf import _C
from dlf.families.family import COMMON_DEFAULTS, Family, biases, clip_of, decoder, read_experts
from dlf.support.fields import Fields

__all__ = ["FAMILY"]


def _spec(fields: Fields) -> _C.ModelSpec:
    return decoder(
        fields,
        attention={"head_norm": "whole", "clip": clip_of(fields), **biases(fields)},
        experts=read_experts(fields, "num_experts", "intermediate_size", fields.flag("norm_topk_prob")),
    )


FAMILY = Family(
    architecture="OlmoeForCausalLM",
    model_type="olmoe",
    defaults=COMMON_DEFAULTS
    | {
        "vocab_size": 50304,
        "hidden_size": 2048,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "num_experts_per_tok": 8,
        "num_experts": 64,
        "norm_topk_prob": False,
        "eos_token_id": 50279,
    },
    spec=_spec,
)
