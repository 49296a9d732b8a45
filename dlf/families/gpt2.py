"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm, biases everywhere, matrices stored as [in, out]."""

from __future__ import annotations

from dlf import _C
from dlf.families.family import COMMON_DEFAULTS, Family, attention_sizes, decoder, epsilon
from dlf.families.parts import Stored, fused, stored
from dlf.families.rope import MAX_POSITIONS
from dlf.support.fields import Fields

__all__ = ["FAMILY"]


def _spec(fields: Fields) -> _C.ModelSpec:
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if fields.flag(key):
            raise fields.error(key, "false, as in all of GPT-2's sizes")
    hidden_size = fields.integer("hidden_size", 1, 1 << 16)
    sizes = attention_sizes(fields, grouped=False)
    size = fields.integer("n_inner", 1, 1 << 20) if "n_inner" in fields else 4 * hidden_size
    return decoder(
        fields,
        ropes=[_C.RopeSpec(inv_freq=[])],
        norm=_C.NormSpec(kind="layer", epsilon=epsilon(fields, "layer_norm_epsilon"), bias=True),
        attention={
            "kv_heads": sizes["heads"],
            "query_scalar": sizes["head_dim"] if fields.flag("scale_attn_weights") else 1.0,
            "bias": True,
            "output_bias": True,
        },
        feed_forward={"size": size, "gated": False, "bias": True},
        activation="activation_function",
        learned_positions=fields.integer("max_position_embeddings", 1, MAX_POSITIONS),
    )


FAMILY = Family(
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    defaults=COMMON_DEFAULTS
    | {
        "vocab_size": 50257,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "activation_function": "gelu_new",
        "max_position_embeddings": 1024,
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    spec=_spec,
    modules=stored(
        embedding="transformer.wte",
        positions="transformer.wpe",
        attention_norm="transformer.h.{layer}.ln_1",
        feed_forward_norm="transformer.h.{layer}.ln_2",
        norm="transformer.ln_f",
        head="lm_head",
    )
    | fused("transformer.h.{layer}.attn.c_attn", "q", "k", "v", transposed=True)
    | {
        "o": Stored("transformer.h.{layer}.attn.c_proj", transposed=True),
        "up": Stored("transformer.h.{layer}.mlp.c_fc", transposed=True),
        "down": Stored("transformer.h.{layer}.mlp.c_proj", transposed=True),
    },
    spellings=({}, {"transformer.": ""}),
    aliases={
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
    },
)
