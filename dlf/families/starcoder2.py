"""StarCoder 2 (Lozhkov et al., arXiv 2402.19173): LayerNorm, biases everywhere, no gates, and a window."""

from __future__ import annotations

from dlf import _C
from dlf.families.family import COMMON_DEFAULTS, MODULES, Family, biases, decoder, epsilon, layer_count, window_of
from dlf.families.parts import stored
from dlf.support.fields import Fields

__all__ = ["FAMILY"]


def _spec(fields: Fields) -> _C.ModelSpec:
    return decoder(
        fields,
        [_C.LayerSpec(window=window_of(fields))] * layer_count(fields),
        norm=_C.NormSpec(kind="layer", epsilon=epsilon(fields, "norm_epsilon"), bias=True),
        attention=biases(fields, "use_bias"),
        feed_forward={"gated": False, "bias": fields.flag("use_bias")},
    )


FAMILY = Family(
    architecture="Starcoder2ForCausalLM",
    model_type="starcoder2",
    defaults=COMMON_DEFAULTS
    | {
        "vocab_size": 49152,
        "hidden_size": 3072,
        "intermediate_size": 12288,
        "num_hidden_layers": 30,
        "num_attention_heads": 24,
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096,
        "norm_epsilon": 1e-5,
        "use_bias": True,
        "tie_word_embeddings": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    spec=_spec,
    modules=MODULES | stored(up="model.layers.{layer}.mlp.c_fc", down="model.layers.{layer}.mlp.c_proj"),
)
