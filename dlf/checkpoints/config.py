"""Reads ``config.json`` and ``generation_config.json`` of a Hugging Face checkpoint.

The files are untrusted: every size is bounded, every type is checked, and nothing named in them is ever imported.
Defaults are those of ``transformers`` (``models/<family>/configuration_<family>.py``), because its writers leave out
what equals them; both the spelling of version 4 (``rope_theta`` and ``rope_scaling``, ``torch_dtype``) and that of
version 5 (``rope_parameters``, ``dtype``) are read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dlf.checkpoints.rope import MAX_POSITIONS, read_rotary
from dlf.errors import CheckpointError, UnknownArchitectureError
from dlf.support.fields import MAX_VOCAB_SIZE, Fields, read_json

__all__ = ["ARCHITECTURES", "ModelConfig", "read_config"]

DTYPES = ("float32", "bfloat16", "float16")

# What transformers assumes for a key that config.json does not have.
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
LLAMA_DEFAULTS = COMMON_DEFAULTS | {
    "vocab_size": 32000,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MISTRAL_DEFAULTS = LLAMA_DEFAULTS | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096 * 32,
    "sliding_window": 4096,
}
QWEN2_DEFAULTS = COMMON_DEFAULTS | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": LLAMA_DEFAULTS,
    "MistralForCausalLM": MISTRAL_DEFAULTS,
    "Qwen2ForCausalLM": QWEN2_DEFAULTS,
    "Qwen3ForCausalLM": QWEN2_DEFAULTS | {"head_dim": 128},
}
MODEL_TYPES = {name.removesuffix("ForCausalLM").lower(): name for name in ARCHITECTURES}


@dataclass(frozen=True, eq=False)
class ModelConfig:
    """What a decoder needs to know about one checkpoint.

    ``sliding_windows`` has one entry per layer: the number of positions a token sees, itself included, or 0 for all of
    them. ``inv_freq`` is float32 ``[head_dim / 2]``, the rotary frequencies exactly as ``transformers`` computes them,
    and ``rope_scaling_factor`` multiplies the cosines and sines. ``context_length`` is the number of positions that the
    model was made for: ``max_position_embeddings``, or more where rotary scaling lengthens that. Where
    ``long_inv_freq`` is given, `inv_freq` is for contexts of at most ``short_context`` positions, and it for longer
    ones. ``dtype`` is the one the file declares. ``eos_token_ids`` are those of both configuration files.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    qk_norm: bool
    attention_bias: bool
    output_bias: bool
    mlp_bias: bool
    sliding_windows: list[int]
    inv_freq: npt.NDArray[np.float32]
    rope_scaling_factor: float
    context_length: int
    short_context: int | None
    long_inv_freq: npt.NDArray[np.float32] | None
    dtype: str | None
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    def kv_bytes_per_token(self, item_bytes: int) -> int:
        """Bytes that one position takes in the KV cache, of numbers of so many bytes."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * item_bytes

    def frequencies(self, context: int) -> npt.NDArray[np.float32]:
        """Rotary frequencies for an engine whose context is this long."""
        if self.long_inv_freq is None or self.short_context is None or context <= self.short_context:
            return self.inv_freq
        return self.long_inv_freq

    def end_tokens(self, tokenizer_eos: int | None) -> list[int]:
        """Ids that end a text: those of the configuration and the tokenizer's, as far as the model has them."""
        found = [*self.eos_token_ids, *(() if tokenizer_eos is None else (tokenizer_eos,))]
        return [token for token in dict.fromkeys(found) if token < self.vocab_size]


def read_config(folder: Path) -> ModelConfig:
    """Read a checkpoint folder's configuration.

    Parameters
    ----------
    folder
        A folder with ``config.json`` and perhaps ``generation_config.json``, which may name more ids that end a text.

    Raises
    ------
    FileNotFoundError
        If the folder has no ``config.json``.
    UnknownArchitectureError
        If ``architectures``, or where it is not given ``model_type``, names none of `ARCHITECTURES`.
    CheckpointError
        If a value is missing, has the wrong type or is out of bounds, or asks for what dlf does not do; if the folder
        is that of an adapter.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if os.path.isfile(folder / "adapter_config.json") and not os.path.lexists(path):
        raise CheckpointError(
            f"{folder} is an adapter and not a model: give it as dlf.Lora(base, adapter), or in a recipe as `adapter:`"
        )
    values = read_json(path)
    architecture = _architecture(values, path)
    fields = Fields(values, ARCHITECTURES[architecture], str(path))
    if fields.raw("hidden_act") != "silu":
        raise fields.error("hidden_act", "'silu', the only activation dlf has")
    if "quantization_config" in fields:
        raise CheckpointError(f"{path}: the checkpoint is quantized; use one in {', '.join(DTYPES)}")

    hidden_size = fields.integer("hidden_size", 1, 65536)
    layers = fields.integer("num_hidden_layers", 1, 1024)
    heads = fields.integer("num_attention_heads", 1, 4096)
    key_value_heads = fields.integer("num_key_value_heads", 1, heads) if "num_key_value_heads" in fields else heads
    if heads % key_value_heads:
        raise fields.error("num_key_value_heads", f"a divisor of num_attention_heads = {heads}")
    if "head_dim" in fields:
        head_dim = fields.integer("head_dim", 2, 1024)
    elif hidden_size % heads:
        raise fields.error(
            "num_attention_heads", f"a divisor of hidden_size = {hidden_size} where head_dim is not given"
        )
    else:
        head_dim = hidden_size // heads
    if head_dim % 2 or not 2 <= head_dim <= 1024:
        raise CheckpointError(f"{path}: 'head_dim' is {head_dim}; rotary embeddings need an even number from 2 to 1024")
    max_positions = fields.integer("max_position_embeddings", 1, MAX_POSITIONS)

    # Qwen2 is built with biases on q, k and v, whatever its file says; Mistral is built with none.
    llama, qwen2, qwen3 = (architecture == f"{name}ForCausalLM" for name in ("Llama", "Qwen2", "Qwen3"))
    attention_bias = qwen2 or ((llama or qwen3) and fields.flag("attention_bias"))
    rotary = read_rotary(fields, head_dim, max_positions)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size", 1, MAX_VOCAB_SIZE),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size", 1, 1 << 20),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        rms_norm_eps=fields.number("rms_norm_eps", 0.0, 1.0),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        qk_norm=qwen3,
        attention_bias=attention_bias,
        output_bias=attention_bias and not qwen2,
        mlp_bias=llama and fields.flag("mlp_bias"),
        sliding_windows=_sliding_windows(fields, architecture, layers),
        inv_freq=rotary.inv_freq,
        rope_scaling_factor=rotary.scaling,
        context_length=rotary.context_length,
        short_context=rotary.short_context,
        long_inv_freq=rotary.long_inv_freq,
        dtype=_dtype(fields),
        eos_token_ids=_eos_token_ids(folder, fields),
        bos_token_id=next(iter(fields.token_ids("bos_token_id")), None),
    )


def _architecture(values: dict[str, Any], path: Path) -> str:
    names, kind = values.get("architectures"), values.get("model_type")
    own = MODEL_TYPES.get(kind) if isinstance(kind, str) else None
    if names in (None, []) and own is not None:
        return own
    name = names[0] if isinstance(names, list) and names else None
    if isinstance(name, str) and name in ARCHITECTURES:
        return name
    other = f"that is no class of {kind} models that predicts tokens; " if own is not None else ""
    raise UnknownArchitectureError(
        f"{path}: 'architectures' is {names!r:.80}; {other}dlf runs {', '.join(ARCHITECTURES)}: choose such a "
        "checkpoint"
    )


def _dtype(fields: Fields) -> str | None:
    name = fields.raw("dtype", "torch_dtype")
    if name is None:
        return None
    name = name.removeprefix("torch.") if isinstance(name, str) else name
    if name not in DTYPES:
        raise fields.error("dtype" if "dtype" in fields else "torch_dtype", f"one of {', '.join(DTYPES)}")
    return str(name)


def _eos_token_ids(folder: Path, fields: Fields) -> tuple[int, ...]:
    """The ids of generation_config.json, then those of config.json that it lacks."""
    path, found = folder / "generation_config.json", fields.token_ids("eos_token_id")
    if os.path.isfile(path):
        found = Fields(read_json(path), {}, str(path)).token_ids("eos_token_id") + found
    return tuple(dict.fromkeys(found))


def _sliding_windows(fields: Fields, architecture: str, layers: int) -> list[int]:
    """The window of each layer: Mistral has one for all, Qwen for the layers that `layer_types` marks."""
    if architecture == "LlamaForCausalLM" or "sliding_window" not in fields:
        window = 0
    elif architecture == "MistralForCausalLM" or fields.flag("use_sliding_window"):
        window = fields.integer("sliding_window", 1, 1 << 28)
    else:
        window = 0
    if not architecture.startswith("Qwen"):
        return [window] * layers
    if "layer_types" not in fields:
        first = fields.integer("max_window_layers", 0, 1 << 28) if window else layers
        return [window if layer >= first else 0 for layer in range(layers)]
    types = fields.raw("layer_types")
    known = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != layers or any(t not in known for t in types):
        raise fields.error("layer_types", f"a list of {layers} times one of {', '.join(known)}")
    if not window and "sliding_attention" in types:
        raise fields.error(
            "sliding_window", "given, and use_sliding_window true, where layer_types has sliding_attention"
        )
    return [window if kind == "sliding_attention" else 0 for kind in types]
