"""Mistral (Jiang et al., arXiv 2310.06825): Llama without biases, with one window for all layers."""

from __future__ import annotations

from dlf import _C
from dlf.families.family import COMMON_DEFAULTS, Family, decoder, layer_count, window_of
from dlf.support.fields import Fields

__all__ = ["FAMILY"]


def _spec(fields: Fields) -> _C.ModelSpec:
    return decoder(fields, [_C.LayerSpec(window=window_of(fields))] * layer_count(fields))


FAMILY = Family(
    architecture="MistralForCausalLM",
    model_type="mistral",
    defaults=COMMON_DEFAULTS
    | {
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096 * 32,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    spec=_spec,
)
