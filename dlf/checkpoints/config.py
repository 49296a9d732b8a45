"""Reads ``config.json`` and ``generation_config.json`` of a Hugging Face checkpoint.

The files are untrusted: every size is bounded, every type is checked, and nothing named in them is ever imported.
Defaults are those of ``transformers`` (``models/<family>/configuration_<family>.py``), because it leaves out values
that equal them; both the spelling of version 4 (``rope_theta`` and ``rope_scaling``, ``torch_dtype``) and that of
version 5 (``rope_parameters``, ``dtype``) are read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dlf import _C
from dlf.checkpoints.precision import TILE_PARTS, MatrixFormat
from dlf.errors import CheckpointError, UnknownArchitectureError
from dlf.families import FAMILIES, WRAPPERS, Family, Wrapper
from dlf.families.parts import LinearModule, Part, parts
from dlf.families.rope import MAX_POSITIONS
from dlf.support.fields import Fields, read_json

__all__ = ["ModelConfig", "make_config", "read_config"]

DTYPES = ("float32", "bfloat16", "float16")
# model_type of well-known models that are something else.
OTHER_KINDS = {
    "recurrent": {"mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "recurrent_gemma"},
    "partly recurrent": {"jamba", "bamba", "zamba", "zamba2", "granitemoehybrid", "qwen3_next", "lfm2", "nemotron_h"},
    "encoders": {"bert", "roberta", "distilbert", "deberta", "deberta-v2", "electra", "albert", "modernbert"},
    "encoders with a decoder": {"t5", "mt5", "bart", "mbart", "pegasus", "marian", "whisper", "t5gemma"},
}


@dataclass(frozen=True, eq=False)
class ModelConfig:
    """The configuration of one checkpoint.

    ``spec`` is what the model computes, as its ``family`` reads it. ``context_length`` is the number of positions that
    the model was made for: ``max_position_embeddings``, or more if rotary scaling lengthens that. ``dtype`` is the
    one that the file declares. ``eos_token_ids`` are those of both configuration files. ``quantization`` is the object
    ``quantization_config`` of a quantized checkpoint, unchecked. ``packed`` has the formats of tensors that the files
    store as integers and scales, by name; that of a tied embedding is for the head.
    """

    family: Family
    spec: _C.ModelSpec
    max_position_embeddings: int
    context_length: int
    tie_word_embeddings: bool
    dtype: str | None
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    quantization: Mapping[str, Any] | None = None
    packed: Mapping[str, MatrixFormat] = field(default_factory=dict)

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self.spec.vocab_size

    @property
    def active_parameters(self) -> int:
        """Parameters that one token takes part in: of experts, those that it is routed to."""
        experts = self.spec.experts
        mixed = sum(math.prod(part.shape) for slot, part in self.parts.items() if ".experts." in slot)
        idle = mixed // experts.count * (experts.count - experts.chosen) if experts.count else 0
        return sum(math.prod(shape) for shape in self.tensors().values()) - idle

    @property
    def short_context(self) -> int | None:
        """Positions beyond which a context has other rotary frequencies; None if it never has."""
        return min((rope.short_context for rope in self.spec.ropes if rope.long_inv_freq), default=None)

    @property
    def embedding(self) -> str:
        """Name of the embedding's tensor."""
        return self.family.tensor("embedding")

    @property
    def head(self) -> str:
        """Name of the head's tensor; the files have none if it is tied to the embedding."""
        return self.family.tensor("head")

    @property
    def of_folder(self) -> ModelConfig:
        """Configuration with the tensors of a folder in Hugging Face format; a GGUF file may have others."""
        modules = self.family.folder_modules
        return self if modules is None else replace(self, family=replace(self.family, modules=modules))

    @cached_property
    def parts(self) -> dict[str, Part]:
        """The part of a stored tensor that fills each slot; a tied head has that of the embedding."""
        found = parts(self.family.modules, self.spec)
        return found | {"head": found["embedding"]} if self.tie_word_embeddings else found

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that the checkpoint must have.

        The head is expected unless it is tied to the embedding.
        """
        return {part.tensor: part.stored for part in self.parts.values()}

    def linear_modules(self) -> dict[str, LinearModule]:
        """Return the linear layers of attention, feed-forward, experts and routers, by the names of their modules.

        Without experts that are stored as one tensor, and what weighs a shared one.
        """
        found: dict[str, LinearModule] = {}
        for slot, part in self.parts.items():
            if "." in slot and len(part.shape) == len(part.stored) == 2 and not slot.endswith(".shared_router"):
                found.setdefault(part.module, LinearModule()).parts[slot] = part
        return found

    def expert_modules(self) -> set[str]:
        """Return the modules of experts and their routers."""
        return {part.module for slot, part in self.parts.items() if ".experts." in slot or slot.endswith(".router")}

    def by_slot(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parts of this checkpoint, and those of tiles, by slot; parts of stored tensors are taken."""
        found = {}
        for slot, part in self.parts.items():
            if slot == "head" and self.tie_word_embeddings and self.head not in tensors:
                continue  # the embedding stands for it, whatever form that has
            name = self.head if slot == "head" else part.name
            for suffix, end in TILE_PARTS.items():
                if name + suffix in tensors:
                    found[slot + end] = tensors[name + suffix]
            if slot not in found and part.tensor in tensors:
                found[slot] = part.take(tensors[part.tensor])
        return found

    def kv_bytes_per_token(self, item_bytes: int) -> int:
        """Bytes of one position in the KV cache, whose numbers take `item_bytes` each."""
        attention = self.spec.attention
        return 2 * len(self.spec.layers) * attention.kv_heads * attention.head_dim * item_bytes

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
        If ``architectures``, or ``model_type`` if that is missing, names none of `dlf.families.FAMILIES`.
    CheckpointError
        If a value is missing, has the wrong type, is out of bounds or not supported, or if the folder is an adapter's.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if os.path.isfile(folder / "adapter_config.json") and not os.path.lexists(path):
        raise CheckpointError(
            f"{folder} is an adapter and not a model: give it as dlf.Lora(base, adapter), or in a recipe as `adapter:`"
        )
    if not os.path.lexists(path) and any(folder.glob("*.gguf")):
        raise FileNotFoundError(f"{folder} has no config.json, but GGUF files: give one of these")
    further = folder / "generation_config.json"
    fields = Fields(read_json(further), {}, str(further)) if os.path.isfile(further) else None
    return make_config(read_json(path), str(path), fields.token_ids("eos_token_id") if fields else ())


def make_config(values: dict[str, Any], where: str, eos_token_ids: tuple[int, ...] = ()) -> ModelConfig:
    """Make the configuration that the content of a ``config.json`` describes.

    Parameters
    ----------
    values
        The content.
    where
        Its place, for messages.
    eos_token_ids
        Ids that end a text, before those of `values`.

    Raises
    ------
    UnknownArchitectureError, CheckpointError
        As `read_config`.
    """
    family, values = _text_part(values, where)
    values = {family.aliases.get(key, key): value for key, value in values.items()}
    fields = Fields(values, dict(family.defaults), where)
    try:
        spec = family.spec(fields)
    except ValueError as error:  # of sizes that do not fit each other
        raise error if isinstance(error, CheckpointError) else CheckpointError(f"{where}: {error}") from None
    return ModelConfig(
        family=family,
        spec=spec,
        max_position_embeddings=fields.integer("max_position_embeddings", 1, MAX_POSITIONS),
        context_length=family.context(fields),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        dtype=_dtype(fields),
        eos_token_ids=tuple(dict.fromkeys(eos_token_ids + fields.token_ids("eos_token_id"))),
        bos_token_id=next(iter(fields.token_ids("bos_token_id")), None),
        quantization=fields.table("quantization_config") or None,
    )


def _text_part(values: dict[str, Any], where: str) -> tuple[Family, dict[str, Any]]:
    """Return the family, and its part of the configuration if the whole has several."""
    found = _family(values, where)
    if isinstance(found, Family):
        return found, values
    text = found.text(values)
    inner = _family({"model_type": text["model_type"]}, f"{where}: 'text_config'")
    if not isinstance(inner, Family):
        raise CheckpointError(f"{where}: 'text_config' is of several parts itself; dlf reads one text part")
    return found.wrap(inner), text


def _family(values: dict[str, Any], where: str) -> Family | Wrapper:
    names, kind = values.get("architectures"), values.get("model_type")
    known: dict[str, Family | Wrapper] = {**FAMILIES, **WRAPPERS}
    own = next((family for family in known.values() if family.model_type == kind), None)
    if names in (None, []) and own is not None:
        return own
    name = names[0] if isinstance(names, list) and names else None
    if isinstance(name, str) and name in known:
        return known[name]
    if own is not None:
        other = f"that is no class of {kind} models that predicts tokens; "
    else:
        kinds = (
            f"such models are {what}; " for what, some in OTHER_KINDS.items() if isinstance(kind, str) and kind in some
        )
        other = next(kinds, "")
    said = f"'architectures' is {names!r:.80}" + ("" if kind is None else f" and 'model_type' {kind!r:.40}")
    raise UnknownArchitectureError(
        f"{where}: {said}; {other}dlf runs decoder-only transformers: {', '.join(known)}; choose such a checkpoint, or "
        "add the family (docs/guide/families.md)"
    )


def _dtype(fields: Fields) -> str | None:
    name = fields.raw("dtype", "torch_dtype")
    if name is None:
        return None
    name = name.removeprefix("torch.") if isinstance(name, str) else name
    if name not in DTYPES:
        raise fields.error("dtype" if "dtype" in fields else "torch_dtype", f"one of {', '.join(DTYPES)}")
    return str(name)
