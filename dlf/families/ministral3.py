"""Ministral 3 (Mistral AI, 2025): Mistral with YaRN, and queries that grow with their position as in Llama 4."""

from __future__ import annotations

from dlf import _C
from dlf.families import mistral
from dlf.families.family import Family, attention_sizes, decoder, layer_count, window_of
from dlf.families.rope import read_rotary
from dlf.support.fields import Fields

__all__ = ["FAMILY"]


def _spec(fields: Fields) -> _C.ModelSpec:
    rope = read_rotary(fields, attention_sizes(fields)["head_dim"], queries=True)
    return decoder(fields, [_C.LayerSpec(window=window_of(fields))] * layer_count(fields), [rope])


FAMILY = Family(
    architecture="Ministral3ForCausalLM",
    model_type="ministral3",
    defaults={
        **mistral.FAMILY.defaults,
        "vocab_size": 131072,
        "num_hidden_layers": 34,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 16.0,
            "original_max_position_embeddings": 16384,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale_all_dim": 1.0,
            "mscale": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    spec=_spec,
)
