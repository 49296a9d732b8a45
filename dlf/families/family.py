"""A model family as data, and what most families share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dlf import _C
from dlf.errors import CheckpointError
from dlf.families.parts import Stored, parts, stored
from dlf.families.rope import context_length, read_rotary
from dlf.support.fields import MAX_VOCAB_SIZE, Fields

__all__ = [
    "COMMON_DEFAULTS",
    "MAX_INNER_SIZE",
    "MAX_WINDOW",
    "MODULES",
    "Family",
    "Wrapper",
    "attention_sizes",
    "biases",
    "clip_of",
    "decoder",
    "epsilon",
    "layer_count",
    "mixed_layers",
    "multiplier",
    "read_experts",
    "sliding_layers",
    "softcap",
    "window_of",
]

MAX_WINDOW = 1 << 28
MAX_HIDDEN_SIZE = 1 << 16
MAX_INNER_SIZE = 1 << 20
MAX_EXPERTS = 1024  # as in cpp/ops/router.h
LAYER_KINDS = ("full_attention", "sliding_attention")
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

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
    shared_router="model.layers.{layer}.mlp.shared_expert_gate",
    shared_gate="model.layers.{layer}.mlp.shared_expert.gate_proj",
    shared_up="model.layers.{layer}.mlp.shared_expert.up_proj",
    shared_down="model.layers.{layer}.mlp.shared_expert.down_proj",
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
    spelling
        The set that was taken.
    aliases
        Other names of keys of ``config.json``.
    context
        Returns the number of positions that a model was made for.
    other_parts
        Modules that a text needs not.
    folder_modules
        Modules of a folder, where a file of another kind has others.
    """

    architecture: str
    model_type: str
    defaults: Mapping[str, Any]
    spec: Callable[[Fields], _C.ModelSpec]
    modules: Mapping[str, Stored] = field(default_factory=lambda: MODULES)
    spellings: tuple[Mapping[str, str], ...] = ({},)
    spelling: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    context: Callable[[Fields], int] = context_length
    other_parts: tuple[str, ...] = ()
    folder_modules: Mapping[str, Stored] | None = None

    def tensor(self, slot: str) -> str:
        """Return the tensor that holds the embedding or the head."""
        return f"{self.modules[slot].module}.weight"

    def is_other_part(self, tensor: str) -> bool:
        """Whether a tensor is of a part that a text needs not."""
        return tensor.removeprefix("model.").split(".")[0] in self.other_parts

    def spelled(self, spec: _C.ModelSpec, names: Collection[str]) -> Family:
        """Return the family with its modules as a checkpoint with these tensors spells them."""
        return max(map(self._in, self.spellings), key=lambda family: _found(family.modules, spec, names))

    def all_spellings(self, name: str) -> set[str]:
        """Return what other checkpoints call a module or tensor of this one; those of the text part alone, too."""
        plain = _spell(name, {written: begin for begin, written in self.spelling.items()})
        return {name, plain, *(_spell(plain, spelling) for spelling in self.spellings)}

    def _in(self, spelling: Mapping[str, str]) -> Family:
        modules = {slot: replace(one, module=_spell(one.module, spelling)) for slot, one in self.modules.items()}
        return replace(self, modules=modules, spelling=spelling)


def _spell(name: str, spelling: Mapping[str, str]) -> str:
    for begin, written in spelling.items():
        if name.startswith(begin):
            return written + name.removeprefix(begin)
    return name


def _found(modules: Mapping[str, Stored], spec: _C.ModelSpec, names: Collection[str]) -> int:
    return sum(part.tensor in names for part in parts(modules, spec).values())


@dataclass(frozen=True)
class Wrapper:
    """An architecture of several parts, whose text part is of another family.

    Attributes
    ----------
    architecture, model_type
        As for a `Family`.
    text_type
        ``model_type`` of the text part, if the file does not say.
    defaults
        Values that ``transformers`` assumes for the whole.
    """

    architecture: str
    model_type: str
    text_type: str
    defaults: Mapping[str, Any]

    def text(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of the text part; what the whole says of both wins."""
        whole = {key: values[key] for key in SHARED if values.get(key) is not None}
        part = values.get("text_config")
        return {"model_type": self.text_type, **(part if isinstance(part, dict) else {}), **self.defaults, **whole}

    def wrap(self, family: Family) -> Family:
        """Return the family of the text part with the architecture and the names of the whole."""
        return replace(
            family,
            architecture=self.architecture,
            model_type=self.model_type,
            spellings=SPELLINGS,
            other_parts=OTHER_PARTS,
        )


# What the configuration of the whole says for all parts, and how it names the text part.
SHARED = ("tie_word_embeddings", "dtype", "torch_dtype", "eos_token_id", "bos_token_id", "quantization_config")
OTHER_PARTS = ("vision_tower", "vision_model", "multi_modal_projector")
SPELLINGS = (
    {"model.": "model.language_model."},
    {"model.": "language_model.model.", "lm_head": "language_model.lm_head"},
)


def layer_count(fields: Fields) -> int:
    """Return the number of layers."""
    return fields.integer("num_hidden_layers", 1, 1024)


def window_of(fields: Fields) -> int:
    """Return ``sliding_window``, or 0 if there is none."""
    return fields.integer("sliding_window", 1, MAX_WINDOW) if "sliding_window" in fields else 0


def sliding_layers(fields: Fields, default: Callable[[int], bool]) -> list[bool]:
    """Return whether each layer has a window: as ``layer_types`` says, else by number."""
    count = layer_count(fields)
    if "layer_types" not in fields:
        return [default(layer) for layer in range(count)]
    types = fields.raw("layer_types")
    if not isinstance(types, list) or len(types) != count or any(kind not in LAYER_KINDS for kind in types):
        raise fields.error("layer_types", f"a list of {count} times one of {', '.join(LAYER_KINDS)}")
    if "sliding_attention" in types and "sliding_window" not in fields:
        raise fields.error("sliding_window", "given where layer_types has sliding_attention")
    return [kind == "sliding_attention" for kind in types]


def mixed_layers(fields: Fields, period: int, sliding_rope: int = 0, whole_rope: int = 0) -> list[_C.LayerSpec]:
    """Return layers that differ in window and rotation: unless ``layer_types`` says, the `period`-th has no window."""
    sliding, whole = _C.LayerSpec(window=window_of(fields), rope=sliding_rope), _C.LayerSpec(rope=whole_rope)
    return [sliding if one else whole for one in sliding_layers(fields, lambda layer: (layer + 1) % period != 0)]


def multiplier(fields: Fields, key: str) -> float:
    """Return a factor on activations."""
    return fields.number(key, 1e-6, 1e6)


def softcap(fields: Fields, key: str) -> float:
    """Return a bound on scores or logits, or 0 if there is none."""
    return fields.number(key, 1e-3, 1e6) if key in fields else 0.0


def clip_of(fields: Fields) -> float:
    """Return the bound that ``clip_qkv`` sets on queries, keys and values, or 0 if there is none."""
    return fields.number("clip_qkv", 1e-6, 1e6) if "clip_qkv" in fields else 0.0


def read_experts(fields: Fields, count: str, size: str, normalise: bool, **more: Any) -> _C.ExpertsSpec:
    """Read the number of experts and their size from the keys `count` and `size`, and how many a token gets.

    `more` are further fields of ``ExpertsSpec``.
    """
    experts = fields.integer(count, 1, MAX_EXPERTS)
    chosen = fields.integer("num_experts_per_tok", 1, experts)
    inner = fields.integer(size, 1, MAX_INNER_SIZE)
    return _C.ExpertsSpec(count=experts, chosen=chosen, size=inner, normalise=normalise, **more)


def decoder(
    fields: Fields,
    layers: Sequence[_C.LayerSpec] | None = None,
    ropes: Sequence[_C.RopeSpec] | None = None,
    norm: _C.NormSpec | None = None,
    attention: Mapping[str, Any] | None = None,
    feed_forward: Mapping[str, Any] | None = None,
    activation: str = "hidden_act",
    experts: _C.ExpertsSpec | None = None,
    **model: Any,
) -> _C.ModelSpec:
    """Read what families like Llama share: pre-norm layers, grouped queries, rotary positions, SwiGLU.

    Parameters
    ----------
    fields
        ``config.json``, with the family's defaults.
    layers
        Settings of each layer, if layers differ.
    ropes
        Rotations, if not one for all layers.
    norm
        The norms, if not RMSNorm before attention and feed-forward.
    attention, feed_forward, model
        Further fields of ``AttentionSpec``, ``FeedForwardSpec`` and ``ModelSpec``.
    activation
        Key of the activation's name.
    experts
        Experts of the layers that have some; without `layers`, of all of them.
    """
    sizes = attention_sizes(fields, "kv_heads" not in (attention or {}))
    name = fields.raw(activation)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise fields.error(activation, f"one of the activations that dlf has, {', '.join(ACTIVATIONS)}")
    inner = {"activation": ACTIVATIONS[name], **(feed_forward or {})}
    if "size" not in inner:
        inner["size"] = fields.integer("intermediate_size", 1, MAX_INNER_SIZE)
    every = _C.LayerSpec(experts=experts is not None)
    return _C.ModelSpec(
        vocab_size=fields.integer("vocab_size", 1, MAX_VOCAB_SIZE),
        hidden_size=fields.integer("hidden_size", 1, MAX_HIDDEN_SIZE),
        norm=norm or _C.NormSpec(epsilon=epsilon(fields, "rms_norm_eps")),
        attention=_C.AttentionSpec(**{**sizes, **(attention or {})}),
        feed_forward=_C.FeedForwardSpec(**inner),
        ropes=list(ropes) if ropes is not None else [read_rotary(fields, sizes["head_dim"])],
        layers=list(layers) if layers is not None else [every] * layer_count(fields),
        experts=experts,
        **model,
    )


def biases(fields: Fields, key: str = "attention_bias") -> dict[str, Any]:
    """Return the biases that a flag gives all of q, k, v and o, or none of them, as ``AttentionSpec`` names them."""
    biased = fields.flag(key)
    return {"bias": biased, "output_bias": biased}


def epsilon(fields: Fields, key: str) -> float:
    """Return what a norm adds to the variance."""
    return fields.number(key, 0.0, 1.0)


def attention_sizes(fields: Fields, grouped: bool = True) -> dict[str, Any]:
    """Return the numbers and the size of heads, as ``AttentionSpec`` names them; `grouped` if they may share keys."""
    hidden_size = fields.integer("hidden_size", 1, MAX_HIDDEN_SIZE)
    heads = fields.integer("num_attention_heads", 1, 4096)
    given = grouped and "num_key_value_heads" in fields
    kv_heads = fields.integer("num_key_value_heads", 1, heads) if given else heads
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of num_attention_heads = {heads}")
    return {"heads": heads, "kv_heads": kv_heads, "head_dim": _head_dim(fields, hidden_size, heads)}


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
