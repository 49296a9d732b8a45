"""Reads the values of a GGUF file's tensors."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import numpy as np
import torch
from gguf import GGMLQuantizationType, dequantize

from dlf.checkpoints.gguf.blocks import UNPACK, unpack
from dlf.checkpoints.gguf.file import GgufTensor
from dlf.checkpoints.packed import PackedMatrix
from dlf.checkpoints.precision import TILE_OUTPUTS
from dlf.errors import CheckpointError

__all__ = ["FLOATS", "KINDS", "packed_rows", "read_packed", "read_values", "value_rows"]

FLOATS = {
    GGMLQuantizationType.F64: torch.float64,
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
KINDS = (*FLOATS, *UNPACK)
CHUNK_BYTES = 1 << 20  # read at once; dequantising takes some 20 times as much


def read_values(tensor: GgufTensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return the values of a tensor.

    Parameters
    ----------
    tensor
        Where it lies; its type is one of `KINDS`.
    dtype
        Type of quantised values, float32 if not given; others keep theirs.

    Returns
    -------
    torch.Tensor
        A view of the mapped file, in a mapping of its own, if the values are floating-point numbers there.

    Raises
    ------
    CheckpointError
        If the file has become shorter.
    """
    if tensor.kind in FLOATS:
        return _mapped(tensor, FLOATS[tensor.kind])
    found = torch.empty(tensor.shape, dtype=dtype or torch.float32)
    rows, first = found.view(-1, tensor.shape[-1]), 0
    for values in value_rows(tensor):
        rows[first : first + len(values)] = values
        first += len(values)
    return found


def value_rows(tensor: GgufTensor, dtype: torch.dtype | None = None) -> Iterator[torch.Tensor]:
    """Yield values, some rows ``[rows, columns]`` after the others, none of them a view; otherwise as `read_values`."""
    for content in _chunks(tensor):
        if tensor.kind in FLOATS:
            yield torch.from_numpy(content).view(FLOATS[tensor.kind])
            continue
        with np.errstate(all="ignore"):  # the caller checks that all values are finite
            values = torch.from_numpy(dequantize(content, tensor.kind))
        yield values.to(dtype or torch.float32)


def read_packed(tensor: GgufTensor) -> PackedMatrix:
    """Return the integers and scales of a matrix, whose type is one of `UNPACK`; errors are those of `read_values`."""
    return PackedMatrix.join(list(packed_rows(tensor)))


def packed_rows(tensor: GgufTensor) -> Iterator[PackedMatrix]:
    """Yield what `read_packed` returns, some rows after the others."""
    for content in _chunks(tensor):
        yield unpack(tensor.kind, torch.from_numpy(content))


def _chunks(tensor: GgufTensor) -> Iterator[np.ndarray]:
    """Yield the bytes of some rows after the others, uint8 ``[rows, bytes]``."""
    count = int(np.prod(tensor.shape[:-1], dtype=np.int64))
    row_bytes = tensor.nbytes // count
    step = max(1, CHUNK_BYTES // row_bytes // TILE_OUTPUTS) * TILE_OUTPUTS
    with open(tensor.path, "rb") as file:
        for first in range(0, count, step):
            rows = min(step, count - first)
            content = bytearray(rows * row_bytes)
            if os.preadv(file.fileno(), [content], tensor.offset + first * row_bytes) < len(content):
                raise _shorter(tensor)
            yield np.frombuffer(content, np.uint8).reshape(rows, row_bytes)


def _mapped(tensor: GgufTensor, dtype: torch.dtype) -> torch.Tensor:
    begin = tensor.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    size = tensor.offset - begin + tensor.nbytes
    with open(tensor.path, "rb") as file:
        if os.fstat(file.fileno()).st_size < begin + size:
            raise _shorter(tensor)
        # Writable, as torch wants it, but copied if written.
        memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY, offset=begin)
    content = torch.frombuffer(memory, dtype=torch.uint8)[tensor.offset - begin :]
    if content.data_ptr() % dtype.itemsize:
        content = content.clone()
    return content.view(dtype).view(tensor.shape)


def _shorter(tensor: GgufTensor) -> CheckpointError:
    return CheckpointError(f"{tensor.path} has become shorter while it was read; fetch it again")
