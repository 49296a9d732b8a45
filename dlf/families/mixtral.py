"""Mixtral (Jiang et al., arXiv 2401.04088): Mistral with experts in every layer."""

from __future__ import annotations

from dlf import _C
from dlf.families.family import COMMON_DEFAULTS, MODULES, Family, decoder, layer_count, read_experts, window_of
from dlf.families.parts import stored
from dlf.support.fields import Fields

__all__ = ["FAMILY"]


def _spec(fields: Fields) -> _C.ModelSpec:
    return decoder(
        fields,
        [_C.LayerSpec(window=window_of(fields), experts=True)] * layer_count(fields),
        experts=read_experts(fields, "num_local_experts", "intermediate_size", normalise=True),
    )


FAMILY = Family(
    architecture="MixtralForCausalLM",
    model_type="mixtral",
    defaults=COMMON_DEFAULTS
    | {
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096 * 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    spec=_spec,
    modules=MODULES
    | stored(
        router="model.layers.{layer}.block_sparse_moe.gate",
        expert_gate="model.layers.{layer}.block_sparse_moe.experts.{expert}.w1",
        expert_up="model.layers.{layer}.block_sparse_moe.experts.{expert}.w3",
        expert_down="model.layers.{layer}.block_sparse_moe.experts.{expert}.w2",
    ),
)
