"""Phi-3 and Phi-4 (arXiv 2404.14219, 2412.08905): Llama with fused projections, and a rotation of part of a head."""

from __future__ import annotations

from dlf import _C
from dlf.families.family import COMMON_DEFAULTS, MODULES, Family, attention_sizes, decoder, layer_count, window_of
from dlf.families.parts import fused
from dlf.families.rope import read_rotary
from dlf.support.fields import Fields

__all__ = ["FAMILY"]


def _spec(fields: Fields) -> _C.ModelSpec:
    rope = read_rotary(fields, attention_sizes(fields)["head_dim"], partial=True)
    return decoder(fields, [_C.LayerSpec(window=window_of(fields))] * layer_count(fields), [rope])


FAMILY = Family(
    architecture="Phi3ForCausalLM",
    model_type="phi3",
    defaults=COMMON_DEFAULTS
    | {
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 32000,
    },
    spec=_spec,
    modules=MODULES
    | fused("model.layers.{layer}.self_attn.qkv_proj", "q", "k", "v")
    | fused("model.layers.{layer}.mlp.gate_up_proj", "gate", "up"),
)
