"""Gemma 3 (arXiv 2503.19786): Gemma 2 with normed heads, another rotation in layers with a window, and no caps.

Nor has ``transformers`` one of scores, even where ``attn_logit_softcapping`` asks for it.
"""

from __future__ import annotations

from dlf import _C
from dlf.families.family import Family, Wrapper, attention_sizes
from dlf.families.gemma2 import DEFAULTS, GEMMA_MODULES, gemma
from dlf.families.rope import MAX_POSITIONS, read_rotary
from dlf.support.fields import Fields

__all__ = ["FAMILY", "WRAPPER"]


def _spec(fields: Fields) -> _C.ModelSpec:
    head_dim = attention_sizes(fields)["head_dim"]
    if any(isinstance(one, dict) for one in fields.table("rope_parameters").values()):
        local = read_rotary(fields, head_dim, "sliding_attention")
    else:  # before version 5; scaling is for the layers without a window
        theta = {"rope_theta": fields.raw("rope_local_base_freq"), "max_position_embeddings": MAX_POSITIONS}
        local = read_rotary(Fields(theta, {}, fields.where), head_dim)
    period = fields.integer("sliding_window_pattern", 1, 1024)
    return gemma(fields, period, [read_rotary(fields, head_dim), local], head_norm="shared")


FAMILY = Family(
    architecture="Gemma3ForCausalLM",
    model_type="gemma3_text",
    defaults=DEFAULTS
    | {
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "sliding_window_pattern": 6,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
    },
    spec=_spec,
    modules=GEMMA_MODULES,
    context=lambda fields: fields.integer("max_position_embeddings", 1, MAX_POSITIONS),  # the scaled length
)
WRAPPER = Wrapper("Gemma3ForConditionalGeneration", "gemma3", "gemma3_text", {"tie_word_embeddings": True})
