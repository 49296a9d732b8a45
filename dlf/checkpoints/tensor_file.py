"""Reads the tensors of one safetensors file, as views of the mapped file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dlf.checkpoints.precision import TensorLayout
from dlf.errors import CheckpointError, is_out_of_memory
from dlf.support.fields import check_fetched

__all__ = ["PORTIONS", "PORTION_BYTES", "TensorFile", "is_utf8"]

FILE_DTYPES = ("F64", "F32", "F16", "BF16")
PORTION_BYTES = 16 << 20
PORTIONS = 16  # of a file whose tensors are kept; each takes address space for the whole file


class TensorFile:
    """An open safetensors file, whose header is read once.

    The pages of a mapped file count as memory of this process from their first use until the mapping ends. So the file
    is mapped anew after every `portion_bytes` that were read, which frees the pages of tensors that nobody kept.

    Parameters
    ----------
    path
        The file.
    portion_bytes
        Bytes read from one mapping. Each takes address space for the whole file as long as a tensor of it is kept.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If it is damaged or cannot be read.
    MemoryError
        If there is too little memory to map it.
    """

    _file: Any = None

    def __init__(self, path: Path, portion_bytes: int = PORTION_BYTES) -> None:
        self.path = path
        self._portion_bytes = portion_bytes
        self._map()
        with self._errors():
            headers = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 (no mapping)
            self.layout = {
                name: TensorLayout(header.get_dtype(), tuple(header.get_shape())) for name, header in headers.items()
            }
            """Type and shape of each tensor."""
            self.metadata: dict[str, str] = self._file.metadata() or {}

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the mapping, except for tensors that are still in use."""
        if self._file is not None:
            self._file.__exit__(None, None, None)
        self._file = None

    def header(self, name: str, shape: tuple[int, ...]) -> TensorLayout:
        """Return the type and shape of a tensor, which must have this shape.

        Raises
        ------
        CheckpointError
            If there is no such tensor, or it has another shape or is not floating-point.
        """
        one = self.layout.get(name)
        if one is None:
            raise CheckpointError(
                f"{self.path} has no tensor '{name}': the checkpoint is incomplete, or of another architecture than "
                "its config.json says; fetch it again"
            )
        if one.dtype not in FILE_DTYPES:
            raise CheckpointError(
                f"{self.path}: tensor '{name}' holds {one.dtype}, not floating-point numbers of one "
                f"of {', '.join(FILE_DTYPES)}; use a checkpoint that is not quantized"
            )
        if one.shape != shape:
            raise CheckpointError(
                f"{self.path}: tensor '{name}' has shape {list(one.shape)}, but config.json asks for "
                f"{list(shape)}; config.json and weights are of different checkpoints, so fetch the checkpoint again"
            )
        return one

    def read(self, name: str, shape: tuple[int, ...], alone: bool = False) -> torch.Tensor:
        """Return one tensor as a view of the file; `alone` gives it a mapping of its own.

        Raises
        ------
        CheckpointError
            As `header`, and if the tensor cannot be read.
        MemoryError
            If there is too little memory to map it.
        """
        self.header(name, shape)
        return self.take(name, alone)

    def take(self, name: str, alone: bool = False) -> torch.Tensor:
        """Return a tensor of any type and shape; errors are those of `read`."""
        nbytes = self.layout[name].nbytes
        if self._file is None or alone or (self._read_bytes and self._read_bytes + nbytes > self._portion_bytes):
            self._map()
        self._read_bytes += self._portion_bytes if alone else nbytes
        with self._errors(f"tensor '{name}' of "):
            tensor: torch.Tensor = self._file.get_tensor(name)
            # Writers pad the header so that numbers are aligned, but the format does not require it.
            return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor

    def _map(self) -> None:
        self.close()
        self._read_bytes = 0
        with self._errors():
            self._file = safe_open(self.path, framework="pt", device="cpu")

    @contextlib.contextmanager
    def _errors(self, what: str = "") -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(f"{self.path} is missing; fetch the checkpoint again") from error
        except (SafetensorError, OSError, RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise MemoryError(
                    f"{what}{self.path} cannot be mapped: this process gets no more memory or address space; load "
                    "smaller models, or raise its limit (ulimit -v)"
                ) from error
            with contextlib.suppress(OSError), open(self.path, "rb") as file:
                check_fetched(self.path, file.read(100))
            if is_utf8(self.path):
                said = ascii(str(error))[1:-1]  # it may quote the file
                raise CheckpointError(
                    f"{what}{self.path} is damaged or cannot be read ({said}); fetch it again"
                ) from error
            raise CheckpointError(f"{str(self.path)!r} is no name in UTF-8; move it to another folder") from error


def is_utf8(path: str | os.PathLike[str]) -> bool:
    """Whether a path is UTF-8, which the library that reads safetensors requires."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True
