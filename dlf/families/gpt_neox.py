"""GPT-NeoX (arXiv 2204.06745), and Pythia (2304.01373): LayerNorm, parallel blocks, heads stored side by side."""

from __future__ import annotations

from dlf import _C
from dlf.families.family import COMMON_DEFAULTS, Family, attention_sizes, biases, decoder, epsilon
from dlf.families.parts import fused, stored
from dlf.families.rope import read_rotary
from dlf.support.fields import Fields

__all__ = ["FAMILY"]


def _spec(fields: Fields) -> _C.ModelSpec:
    sizes = attention_sizes(fields, grouped=False)
    return decoder(
        fields,
        ropes=[read_rotary(fields, sizes["head_dim"], partial=True)],
        norm=_C.NormSpec(kind="layer", epsilon=epsilon(fields, "layer_norm_eps"), bias=True),
        attention={"kv_heads": sizes["heads"], **biases(fields)},
        feed_forward={"gated": False, "bias": True},
        parallel=fields.flag("use_parallel_residual"),
    )


FAMILY = Family(
    architecture="GPTNeoXForCausalLM",
    model_type="gpt_neox",
    defaults=COMMON_DEFAULTS
    | {
        "vocab_size": 50432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "hidden_act": "gelu",
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "attention_bias": True,
        "partial_rotary_factor": 0.25,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    spec=_spec,
    modules=stored(
        embedding="gpt_neox.embed_in",
        attention_norm="gpt_neox.layers.{layer}.input_layernorm",
        o="gpt_neox.layers.{layer}.attention.dense",
        feed_forward_norm="gpt_neox.layers.{layer}.post_attention_layernorm",
        up="gpt_neox.layers.{layer}.mlp.dense_h_to_4h",
        down="gpt_neox.layers.{layer}.mlp.dense_4h_to_h",
        norm="gpt_neox.final_layer_norm",
        head="lm_head",
    )
    | fused("gpt_neox.layers.{layer}.attention.query_key_value", "q", "k", "v", interleaved=True),
    spellings=({}, {"lm_head": "embed_out"}),
    aliases={"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"},
)
