"""A model family as data, and what most families share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dlf import _C
from dlf.errors import CheckpointError
from dlf.families.parts import Stored, parts, stored
from dlf.families.rope import MAX_POSITIONS, read_rotary
from dlf.support.fields import MAX_VOCAB_SIZE, Fields

__all__ = ["COMMON_DEFAULTS", "MAX_WINDOW", "MODULES", "Family", "decoder", "layer_count", "read_experts"]

MAX_WINDOW = 1 << 28
MAX_EXPERTS = 1024  # as in cpp/ops/router.h

# Values that transformers assumes in most families for keys that config.json leaves out.
COMMON_DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}

# The modules of a checkpoint by slot, as Llama named them and most others do.
MODULES = stored(
    embedding="model.embed_tokens",
    attention_norm="model.layers.{layer}.input_layernorm",
    q="model.layers.{layer}.self_attn.q_proj",
    k="model.layers.{layer}.self_attn.k_proj",
    v="model.layers.{layer}.self_attn.v_proj",
    o="model.layers.{layer}.self_attn.o_proj",
    q_norm="model.layers.{layer}.self_attn.q_norm",
    k_norm="model.layers.{layer}.self_attn.k_norm",
    feed_forward_norm="model.layers.{layer}.post_attention_layernorm",
    gate="model.layers.{layer}.mlp.gate_proj",
    up="model.layers.{layer}.mlp.up_proj",
    down="model.layers.{layer}.mlp.down_proj",
    router="model.layers.{layer}.mlp.gate",
    expert_gate="model.layers.{layer}.mlp.experts.{expert}.gate_proj",
    expert_up="model.layers.{layer}.mlp.experts.{expert}.up_proj",
    expert_down="model.layers.{layer}.mlp.experts.{expert}.down_proj",
    norm="model.norm",
    head="lm_head",
)


@dataclass(frozen=True)
class Family:
    """How the checkpoints of one architecture are read.

    Attributes
    ----------
    architecture
        Its name in ``architectures`` of ``config.json``.
    model_type
        Its name in ``model_type``.
    defaults
        Values that ``transformers`` assumes for keys that ``config.json`` leaves out.
    spec
        Makes a ``ModelSpec`` of a ``config.json``; raises CheckpointError for what dlf does not support.
    modules
        Module of the checkpoint that holds each slot.
    spellings
        Beginnings of names that some files write in another way, each set with what they write. The set that finds
        the most tensors in a checkpoint is taken.
    """

    architecture: str
    model_type: str
    defaults: Mapping[str, Any]
    spec: Callable[[Fields], _C.ModelSpec]
    modules: Mapping[str, Stored] = field(default_factory=lambda: MODULES)
    spellings: tuple[Mapping[str, str], ...] = ({},)

    def tensor(self, slot: str) -> str:
        """Return the tensor that holds the embedding or the head."""
        return f"{self.modules[slot].module}.weight"

    def spelled(self, spec: _C.ModelSpec, names: Collection[str]) -> Family:
        """Return the family with its modules as a checkpoint with these tensors spells them."""
        spelled = [{slot: _spell(one, spelling) for slot, one in self.modules.items()} for spelling in self.spellings]
        return replace(self, modules=max(spelled, key=lambda modules: _found(modules, spec, names)))


def _spell(one: Stored, spelling: Mapping[str, str]) -> Stored:
    for begin, written in spelling.items():
        if one.module.startswith(begin):
            return replace(one, module=written + one.module.removeprefix(begin))
    return one


def _found(modules: Mapping[str, Stored], spec: _C.ModelSpec, names: Collection[str]) -> int:
    return sum(part.tensor in names for part in parts(modules, spec).values())


def layer_count(fields: Fields) -> int:
    """Return the number of layers."""
    return fields.integer("num_hidden_layers", 1, 1024)


def read_experts(fields: Fields, count: str, size: str, normalise: bool) -> _C.ExpertsSpec:
    """Read the number of experts and their size from the keys `count` and `size`, and how many a token gets."""
    experts = fields.integer(count, 1, MAX_EXPERTS)
    chosen = fields.integer("num_experts_per_tok", 1, experts)
    return _C.ExpertsSpec(count=experts, chosen=chosen, size=fields.integer(size, 1, 1 << 20), normalise=normalise)


def decoder(
    fields: Fields,
    layers: Sequence[_C.LayerSpec] | None = None,
    head_norm: str = "none",
    bias: bool = False,
    output_bias: bool = False,
    feed_forward_bias: bool = False,
    experts: _C.ExpertsSpec | None = None,
) -> _C.ModelSpec:
    """Read what families like Llama share: pre-norm layers, grouped queries, rotary positions, SwiGLU.

    Parameters
    ----------
    fields
        ``config.json``, with the family's defaults.
    layers
        Settings of each layer, if layers differ.
    head_norm
        Whether queries and keys are normed: ``"none"``, ``"head"`` by head or ``"whole"``.
    bias, output_bias, feed_forward_bias
        Whether the projections to q, k and v, that of attention's output, and those of the feed-forward have a bias.
    experts
        Experts of the layers that have some; without `layers`, of all of them.
    """
    if fields.raw("hidden_act") != "silu":
        raise fields.error("hidden_act", "'silu', the only activation dlf has")
    hidden_size = fields.integer("hidden_size", 1, 65536)
    heads = fields.integer("num_attention_heads", 1, 4096)
    kv_heads = fields.integer("num_key_value_heads", 1, heads) if "num_key_value_heads" in fields else heads
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of num_attention_heads = {heads}")
    head_dim = _head_dim(fields, hidden_size, heads)
    max_positions = fields.integer("max_position_embeddings", 1, MAX_POSITIONS)
    every = _C.LayerSpec(experts=experts is not None)
    return _C.ModelSpec(
        vocab_size=fields.integer("vocab_size", 1, MAX_VOCAB_SIZE),
        hidden_size=hidden_size,
        norm=_C.NormSpec(epsilon=fields.number("rms_norm_eps", 0.0, 1.0)),
        attention=_C.AttentionSpec(
            heads=heads, kv_heads=kv_heads, head_dim=head_dim, head_norm=head_norm, bias=bias, output_bias=output_bias
        ),
        feed_forward=_C.FeedForwardSpec(size=fields.integer("intermediate_size", 1, 1 << 20), bias=feed_forward_bias),
        ropes=[read_rotary(fields, head_dim, max_positions).rope],
        layers=list(layers) if layers is not None else [every] * layer_count(fields),
        experts=experts,
    )


def _head_dim(fields: Fields, hidden_size: int, heads: int) -> int:
    if "head_dim" in fields:
        head_dim = fields.integer("head_dim", 2, 512)
    elif hidden_size % heads:
        raise fields.error(
            "num_attention_heads", f"a divisor of hidden_size = {hidden_size} where head_dim is not given"
        )
    else:
        head_dim = hidden_size // heads
    if head_dim % 2 or not 2 <= head_dim <= 512:
        raise CheckpointError(
            f"{fields.where}: 'head_dim' is {head_dim}; rotary embeddings need an even number from 2 to 512"
        )
    return head_dim
