"""A checkpoint in a GGUF file."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from dlf.checkpoints.config import ModelConfig, make_config
from dlf.checkpoints.content_hash import content_hash
from dlf.checkpoints.gguf.blocks import UNPACK, format_of
from dlf.checkpoints.gguf.config import architecture_of, config_values
from dlf.checkpoints.gguf.file import GgufFile, read_gguf
from dlf.checkpoints.gguf.names import SPLIT, Stored, find_tensors
from dlf.checkpoints.gguf.tokenizer import tokenizer_parts
from dlf.checkpoints.gguf.values import FLOATS, KINDS, packed_rows, read_packed, read_values, value_rows
from dlf.checkpoints.packed import PackedMatrix
from dlf.checkpoints.precision import SAFETENSORS_DTYPES, TensorLayout
from dlf.errors import CheckpointError
from dlf.text.tokenizer import Tokenizer
from dlf.text.tokenizer_parts import TokenizerParts

__all__ = ["Gguf"]

USED_ELSEWHERE = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
VERSION = "1"  # raise it when tensors are read in another way


class Gguf:
    """The `Source` of a GGUF file, or of the files that a split one consists of.

    Parameters
    ----------
    path
        The file, or one of them.
    name
        What the user called it, if that differs.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = Path(path)
        self.name = os.fspath(path) if name is None else name

    @cached_property
    def file(self) -> GgufFile:
        """Metadata, and where each tensor lies."""
        return read_gguf(self.path)

    @property
    def files(self) -> list[Path]:
        """The file, or all parts of it."""
        return self.file.files

    @cached_property
    def declared(self) -> ModelConfig:
        """Configuration that follows from the metadata."""
        config = make_config(config_values(self.file), str(self.path))
        split = SPLIT.get(architecture_of(self.file))
        if split is None:
            return config
        modules = config.family.modules
        return replace(config, family=replace(config.family, modules={**modules, **split}, folder_modules=modules))

    @cached_property
    def config(self) -> ModelConfig:
        """Configuration; tensors that it does not ask for are a warning."""
        used = {stored.tensor.offset for stored in self._stored.values()}
        unused = [
            name
            for name, tensor in self.file.tensors.items()
            if tensor.offset not in used and name not in USED_ELSEWHERE and len(tensor.shape) < 3
        ]
        if unused:
            warnings.warn(
                f"{self.path} has {len(unused)} tensors that are not used, such as {unused[0]!r:.80}; "
                "check that the model is of an architecture that dlf runs",
                RuntimeWarning,
                stacklevel=3,  # cached_property calls this
            )
        packed = {
            name: format_of(stored.tensor.kind)
            for name, stored in self._stored.items()
            if stored.tensor.kind in UNPACK and not stored.transposed and len(stored.shape) == 2
        }
        return replace(self.declared, packed={name: one for name, one in packed.items() if one is not None})

    @property
    def has_tokenizer(self) -> bool:
        """Whether the file has a vocabulary."""
        return "tokenizer.ggml.tokens" in self.file.metadata

    def tokenizer(self) -> Tokenizer:
        """Make the tokenizer that the metadata describe."""
        return Tokenizer(self._tokenizer_parts)

    @property
    def layouts(self) -> Mapping[str, TensorLayout]:
        """Type, as GGUF calls it, and shape of each tensor in the file."""
        return {name: TensorLayout(one.kind.name, one.shape) for name, one in self.file.tensors.items()}

    @property
    def kinds(self) -> Mapping[str, str]:
        """The type of each quantised tensor."""
        kinds = {name: stored.tensor.kind for name, stored in self._stored.items()}
        return {name: f"GGUF {kind.name}" for name, kind in kinds.items() if kind not in FLOATS}

    def stored_bytes(self, name: str) -> int:
        """Bytes of a tensor in the file."""
        return self._stored[name].tensor.nbytes

    @property
    def other_parts(self) -> Mapping[str, TensorLayout]:
        """None: llama.cpp keeps other parts in files of their own."""
        return {}

    @property
    def names(self) -> list[str]:
        """Tensors of the configuration in the order of the file."""
        stored = self._stored
        return sorted(stored, key=lambda name: (stored[name].tensor.path, stored[name].tensor.offset))

    def path_of(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self._stored[name].tensor.path

    def layout(self, name: str) -> TensorLayout:
        """Return the type and shape in which `read` returns a tensor."""
        stored = self._stored[name]
        return TensorLayout(SAFETENSORS_DTYPES[FLOATS.get(stored.tensor.kind, torch.float32)], stored.shape)

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor: a view of the mapped file if it has these values, else computed."""
        stored = self._stored[name]
        return stored.undo(read_values(stored.tensor))

    def rows(self, name: str, keep: bool = False, dtype: torch.dtype | None = None) -> Iterator[torch.Tensor]:
        """Yield a tensor: whole if the file has its values and they are kept, or other rows, else some rows at once."""
        stored = self._stored[name]
        if (keep and stored.tensor.kind in FLOATS) or len(stored.shape) < 2 or not stored.by_row:
            yield stored.undo(read_values(stored.tensor, dtype))
        else:
            yield from map(stored.undo, value_rows(stored.tensor, dtype))

    def packed(self, name: str) -> Iterator[PackedMatrix]:
        """Yield a matrix whose type `UNPACK` has."""
        stored = self._stored[name]
        if stored.by_row:
            yield from packed_rows(stored.tensor)
        else:
            yield read_packed(stored.tensor).select(stored.undo)

    def release(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a view with a mapping of its own; each has one."""
        stored = self._stored[name]
        viewed = stored.unchanged and FLOATS.get(stored.tensor.kind) == tensor.dtype
        return read_values(stored.tensor) if viewed else tensor

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def content_hash(self, cache: Path) -> str:
        """Return a hash of the files."""
        return content_hash({path: ["gguf", VERSION] for path in self.file.files}, cache)

    def side_files(self) -> dict[str, bytes]:
        """Return ``config.json`` and the tokenizer's files."""
        documents = {"config.json": config_values(self.file)} | self._tokenizer_parts.documents()
        return {name: json.dumps(value, ensure_ascii=False).encode() for name, value in documents.items()}

    @cached_property
    def _stored(self) -> dict[str, Stored]:
        found = find_tensors(self.file, architecture_of(self.file), self.declared)
        for name, stored in found.items():
            if stored.tensor.kind not in KINDS:
                raise CheckpointError(
                    f"{stored.tensor.path}: tensor '{name}' has type {stored.tensor.kind.name}; dlf reads "
                    f"{', '.join(kind.name for kind in KINDS)}: use a model of one of these"
                )
        return found

    @cached_property
    def _tokenizer_parts(self) -> TokenizerParts:
        return tokenizer_parts(self.file)
