"""Qwen3's mixtures of experts (Yang et al., arXiv 2505.09388): Qwen3 with experts in most layers."""

from __future__ import annotations

from dlf import _C
from dlf.families import qwen2
from dlf.families.family import Family, biases, decoder, layer_count, read_experts, window_of
from dlf.support.fields import Fields

__all__ = ["FAMILY", "sparse_layers"]


def sparse_layers(fields: Fields) -> list[bool]:
    """Return whether each layer has experts."""
    step = fields.integer("decoder_sparse_step", 1, 1024)
    dense = fields.raw("mlp_only_layers") or []
    if not isinstance(dense, list) or any(type(layer) is not int for layer in dense):
        raise fields.error("mlp_only_layers", "a list of the numbers of layers without experts, or null")
    return [layer not in dense and (layer + 1) % step == 0 for layer in range(layer_count(fields))]


def _spec(fields: Fields) -> _C.ModelSpec:
    window = window_of(fields) if fields.flag("use_sliding_window") else 0
    number = "num_experts" if "num_experts" in fields else "num_local_experts"
    return decoder(
        fields,
        [_C.LayerSpec(window=window, experts=experts) for experts in sparse_layers(fields)],
        attention={"head_norm": "shared", **biases(fields)},
        experts=read_experts(fields, number, "moe_intermediate_size", fields.flag("norm_topk_prob")),
    )


FAMILY = Family(
    architecture="Qwen3MoeForCausalLM",
    model_type="qwen3_moe",
    defaults=qwen2.DEFAULTS
    | {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_key_value_heads": 4,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_local_experts": 128,
        "norm_topk_prob": False,
    },
    spec=_spec,
)
