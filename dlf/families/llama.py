"""Llama (Touvron et al., arXiv 2302.13971), and the many models that call themselves one."""

from __future__ import annotations

from dlf import _C
from dlf.families.family import COMMON_DEFAULTS, Family, biases, decoder
from dlf.support.fields import Fields

__all__ = ["FAMILY"]


def _spec(fields: Fields) -> _C.ModelSpec:
    return decoder(fields, attention=biases(fields), feed_forward={"bias": fields.flag("mlp_bias")})


FAMILY = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    defaults=COMMON_DEFAULTS
    | {
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    spec=_spec,
)
