"""SmolLM3 (Hugging Face, 2025): Llama without a rotation in every fourth layer, which may have a window instead."""

from __future__ import annotations

from dlf import _C
from dlf.families.family import (
    COMMON_DEFAULTS,
    Family,
    attention_sizes,
    biases,
    decoder,
    layer_count,
    sliding_layers,
    window_of,
)
from dlf.families.rope import read_rotary
from dlf.support.fields import Fields

__all__ = ["FAMILY"]


def _spec(fields: Fields) -> _C.ModelSpec:
    turns = _turning_layers(fields)
    window = window_of(fields) if fields.flag("use_sliding_window") else 0
    slides = sliding_layers(fields, lambda layer: window > 0 and not turns[layer])
    layers = [
        _C.LayerSpec(window=window if sliding else 0, rope=0 if turn else 1)
        for sliding, turn in zip(slides, turns, strict=True)
    ]
    return decoder(
        fields,
        layers,
        ropes=[read_rotary(fields, attention_sizes(fields)["head_dim"]), _C.RopeSpec(inv_freq=[])],
        attention=biases(fields),
        feed_forward={"bias": fields.flag("mlp_bias")},
    )


def _turning_layers(fields: Fields) -> list[bool]:
    count = layer_count(fields)
    if "no_rope_layers" not in fields:
        interval = fields.integer("no_rope_layer_interval", 1, 1024)
        return [(layer + 1) % interval != 0 for layer in range(count)]
    given = fields.raw("no_rope_layers")
    if not isinstance(given, list) or len(given) < count or any(one not in (0, 1) for one in given):
        raise fields.error("no_rope_layers", f"a list of at least {count} zeros and ones")
    return [bool(one) for one in given[:count]]


FAMILY = Family(
    architecture="SmolLM3ForCausalLM",
    model_type="smollm3",
    defaults=COMMON_DEFAULTS
    | {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 2e6,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "no_rope_layer_interval": 4,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    spec=_spec,
)
