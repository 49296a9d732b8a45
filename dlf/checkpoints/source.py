"""A checkpoint as the rest of dlf reads it, whatever files it is stored in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch

from dlf.checkpoints.config import ModelConfig
from dlf.checkpoints.folder import Folder
from dlf.checkpoints.hub import GGUF, resolve
from dlf.checkpoints.packed import PackedMatrix
from dlf.checkpoints.precision import TensorLayout
from dlf.text.tokenizer import Tokenizer

__all__ = ["Source", "open_checkpoint", "open_source"]


class Source(Protocol):
    """Where a checkpoint's configuration, tensors and tokenizer are read.

    Tensors have the names and shapes of `ModelConfig.tensors`, however the files call and store them. Every method
    raises FileNotFoundError for a missing file and CheckpointError for a damaged or unsupported one; messages name the
    file and the remedy.
    """

    @property
    def name(self) -> str:
        """The checkpoint as the user named it."""

    @property
    def path(self) -> Path:
        """Its folder or file."""

    @property
    def files(self) -> list[Path]:
        """Files that it is stored in."""

    @property
    def declared(self) -> ModelConfig:
        """Configuration as it is written; needs no weights."""

    @property
    def config(self) -> ModelConfig:
        """Configuration, corrected where the weights say otherwise; reads their headers only."""

    @property
    def has_tokenizer(self) -> bool:
        """Whether `tokenizer` finds one."""

    def tokenizer(self) -> Tokenizer:
        """Read the tokenizer and its chat template."""

    @property
    def layouts(self) -> Mapping[str, TensorLayout]:
        """Type and shape of each stored tensor, also of those that the configuration does not ask for."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """The form of each tensor of the configuration that the files have quantized, for people."""

    def stored_bytes(self, name: str) -> int:
        """Bytes that a tensor of `kinds` takes in the files."""

    @property
    def other_parts(self) -> Mapping[str, TensorLayout]:
        """Type and shape of the tensors of parts that a text needs not, such as a vision tower; copies keep them.

        `layout`, `path_of` and `read` take them too.
        """

    @property
    def names(self) -> list[str]:
        """Tensors of the configuration, in the order in which to read them."""

    def path_of(self, name: str) -> Path:
        """Return the file that holds a tensor of the configuration."""

    def layout(self, name: str) -> TensorLayout:
        """Return the type and shape in which `read` returns a tensor of the configuration."""

    def read(self, name: str) -> torch.Tensor:
        """Return the floating-point values of a tensor of the configuration, as a view of its file if possible."""

    def rows(self, name: str, keep: bool = False, dtype: torch.dtype | None = None) -> Iterator[torch.Tensor]:
        """Yield what `read` returns, to save memory some rows after the others; a view that is kept, whole.

        Parameters
        ----------
        name
            One of `ModelConfig.tensors`.
        keep
            Whether the caller keeps a view if it gets one.
        dtype
            Type that the caller will convert to. Values that are computed and not viewed may have it already.
        """

    def packed(self, name: str) -> Iterator[PackedMatrix]:
        """Yield a matrix of `ModelConfig.packed` as integers and scales, whole or some rows after the others.

        Before the last rows, their number is a multiple of 16, so that they fill whole tiles.
        """

    def release(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor that was read, without its pages in memory if it is a view: each comes back with its use."""

    def close(self) -> None:
        """Release what reading took, except for tensors that are still in use; they can be read again."""

    def content_hash(self, cache: Path) -> str:
        """Return a hash of the tensors of the configuration; `cache` remembers the hashes of files."""

    def side_files(self) -> dict[str, bytes]:
        """Return the configuration, tokenizer and templates as the files of a Hugging Face folder, by path in it."""


def open_source(name: str | os.PathLike[str], weights: bool = True) -> Source:
    """Return the source of a checkpoint; nothing is read of it yet.

    Parameters
    ----------
    name
        An existing folder or GGUF file, or a hub id; see `resolve`.
    weights
        Whether weights on the hub are fetched too. Without, only `Source.declared` and the tokenizer can be read; a
        GGUF file is fetched in any case, since it holds all in one.

    Raises
    ------
    FileNotFoundError, CheckpointError
        As `resolve`.
    """
    path = resolve(name, weights)
    if path.suffix == GGUF:
        from dlf.checkpoints.gguf.source import Gguf

        return Gguf(path, os.fspath(name))
    return Folder(path, os.fspath(name))


def open_checkpoint(name: str | os.PathLike[str]) -> Source:
    """Return the source of a checkpoint whose configuration has been read and checked against the weights' headers.

    Raises
    ------
    FileNotFoundError, CheckpointError, MemoryError
        If there is no such checkpoint, or it cannot be used.
    """
    source = open_source(name)
    _ = source.config
    return source
