"""OLMo 3 (arXiv 2512.13961): OLMo 2 with a window in three of four layers, whose rotation is never scaled."""

from __future__ import annotations

from dlf import _C
from dlf.families.family import Family, attention_sizes, mixed_layers
from dlf.families.olmo2 import DEFAULTS, OLMO_MODULES, olmo
from dlf.families.rope import read_rotary
from dlf.support.fields import Fields

__all__ = ["FAMILY"]


def _spec(fields: Fields) -> _C.ModelSpec:
    head_dim = attention_sizes(fields)["head_dim"]
    if any(isinstance(one, dict) for one in fields.table("rope_parameters").values()):
        local = read_rotary(fields, head_dim, "sliding_attention")
    else:
        plain = {key: fields.raw(key) for key in ("rope_theta", "max_position_embeddings")}
        local = read_rotary(Fields(plain, {}, fields.where), head_dim)
    return olmo(fields, mixed_layers(fields, 4, sliding_rope=1), [read_rotary(fields, head_dim), local])


FAMILY = Family(
    architecture="Olmo3ForCausalLM",
    model_type="olmo3",
    defaults=DEFAULTS | {"rope_theta": 5e5, "sliding_window": 4096},
    spec=_spec,
    modules=OLMO_MODULES,
)
