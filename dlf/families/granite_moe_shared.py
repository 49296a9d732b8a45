"""Granite mixtures with a shared expert (IBM, 2024): Granite's experts, and one that every token gets."""

from __future__ import annotations

from dlf import _C
from dlf.families.family import MAX_INNER_SIZE, Family, read_experts
from dlf.families.granite import granite
from dlf.families.granite_moe import MOE_DEFAULTS, MOE_MODULES
from dlf.families.parts import fused, stored
from dlf.support.fields import Fields

__all__ = ["FAMILY"]


def _spec(fields: Fields) -> _C.ModelSpec:
    shared = fields.integer("shared_intermediate_size", 0, MAX_INNER_SIZE)
    experts = read_experts(fields, "num_local_experts", "intermediate_size", normalise=True, shared_size=shared)
    return granite(fields, experts=experts)


FAMILY = Family(
    architecture="GraniteMoeSharedForCausalLM",
    model_type="granitemoeshared",
    defaults=MOE_DEFAULTS | {"shared_intermediate_size": 0},
    spec=_spec,
    modules=MOE_MODULES
    | fused("model.layers.{layer}.shared_mlp.input_linear", "shared_gate", "shared_up")
    | stored(shared_down="model.layers.{layer}.shared_mlp.output_linear"),
)
