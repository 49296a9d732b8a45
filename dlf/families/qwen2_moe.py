"""Qwen1.5 and Qwen2 mixtures (arXiv 2407.10671): experts, and a shared one, whose output a sigmoid scales."""

from __future__ import annotations

from dlf import _C
from dlf.families import qwen2
from dlf.families.family import MAX_INNER_SIZE, Family, decoder, read_experts
from dlf.families.qwen3_moe import sparse_layers
from dlf.support.fields import Fields

__all__ = ["FAMILY"]


def _spec(fields: Fields) -> _C.ModelSpec:
    layers = [
        _C.LayerSpec(window=layer.window, experts=sparse)
        for layer, sparse in zip(qwen2.windowed_layers(fields), sparse_layers(fields), strict=True)
    ]
    shared = fields.integer("shared_expert_intermediate_size", 1, MAX_INNER_SIZE)
    normalise = fields.flag("norm_topk_prob")
    experts = read_experts(
        fields, "num_experts", "moe_intermediate_size", normalise, shared_size=shared, shared_router=True
    )
    return decoder(fields, layers, attention={"bias": fields.flag("qkv_bias")}, experts=experts)


FAMILY = Family(
    architecture="Qwen2MoeForCausalLM",
    model_type="qwen2_moe",
    defaults=qwen2.DEFAULTS
    | {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts_per_tok": 4,
        "num_experts": 60,
        "norm_topk_prob": False,
        "qkv_bias": True,
    },
    spec=_spec,
)
