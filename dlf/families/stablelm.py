"""StableLM (Bellagente et al., arXiv 2402.17834): Llama with LayerNorm, and a rotation of part of a head."""

from __future__ import annotations

from dlf import _C
from dlf.families.family import COMMON_DEFAULTS, Family, attention_sizes, decoder, epsilon
from dlf.families.rope import read_rotary
from dlf.support.fields import Fields

__all__ = ["FAMILY"]


def _spec(fields: Fields) -> _C.ModelSpec:
    if fields.flag("qk_layernorm"):
        raise fields.error("qk_layernorm", "false: dlf reads no LayerNorm of heads that are stored apart")
    parallel = fields.flag("use_parallel_residual")
    norm = _C.NormSpec(kind="layer", epsilon=epsilon(fields, "layer_norm_eps"), bias=True, shared=parallel)
    rope = read_rotary(fields, attention_sizes(fields)["head_dim"], partial=True)
    attention = {"bias": fields.flag("use_qkv_bias")}
    return decoder(fields, ropes=[rope], norm=norm, attention=attention, parallel=parallel)


FAMILY = Family(
    architecture="StableLmForCausalLM",
    model_type="stablelm",
    defaults=COMMON_DEFAULTS
    | {
        "vocab_size": 50304,
        "hidden_size": 2560,
        "intermediate_size": 6912,
        "max_position_embeddings": 4096,
        "partial_rotary_factor": 0.25,
        "layer_norm_eps": 1e-5,
        "use_qkv_bias": False,
        "qk_layernorm": False,
        "use_parallel_residual": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    spec=_spec,
)
