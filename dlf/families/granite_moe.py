"""Granite 3 mixtures of experts (IBM, 2024): Granite with experts in every layer, stored as one tensor."""

from __future__ import annotations

from dlf.families.family import MODULES, Family, read_experts
from dlf.families.granite import DEFAULTS, granite
from dlf.families.parts import Stored, fused, stored

__all__ = ["FAMILY", "MOE_DEFAULTS", "MOE_MODULES"]

MOE_DEFAULTS = DEFAULTS | {"num_local_experts": 8, "num_experts_per_tok": 2}
BLOCK = "model.layers.{layer}.block_sparse_moe"
MOE_MODULES = (
    MODULES
    | stored(router=f"{BLOCK}.router.layer")
    | fused(f"{BLOCK}.input_linear", "expert_gate", "expert_up", stacked=True)
    | {"expert_down": Stored(f"{BLOCK}.output_linear", stacked=True)}
)
FAMILY = Family(
    architecture="GraniteMoeForCausalLM",
    model_type="granitemoe",
    defaults=MOE_DEFAULTS,
    spec=lambda fields: granite(
        fields, experts=read_experts(fields, "num_local_experts", "intermediate_size", normalise=True)
    ),
    modules=MOE_MODULES,
)
