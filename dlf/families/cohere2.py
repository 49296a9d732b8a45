"""Command R7B (Cohere, arXiv 2504.00698): Command R with a window in three of four layers, the fourth unrotated."""

from __future__ import annotations

from dlf import _C
from dlf.families.cohere import COHERE_MODULES, DEFAULTS, cohere
from dlf.families.family import Family, attention_sizes, mixed_layers
from dlf.families.rope import read_rotary
from dlf.support.fields import Fields

__all__ = ["FAMILY"]


def _spec(fields: Fields) -> _C.ModelSpec:
    period = fields.integer("sliding_window_pattern", 1, 1024)
    layers = mixed_layers(fields, period, whole_rope=1)
    return cohere(fields, layers, [read_rotary(fields, attention_sizes(fields)["head_dim"]), _C.RopeSpec(inv_freq=[])])


FAMILY = Family(
    architecture="Cohere2ForCausalLM",
    model_type="cohere2",
    defaults=DEFAULTS | {"rope_theta": 1e4, "sliding_window": 4096, "sliding_window_pattern": 4},
    spec=_spec,
    modules=COHERE_MODULES,
)
