"""Reads the values of a GGUF file's tensors."""

from __future__ import annotations

import mmap
import os

import numpy as np
import torch
from gguf import GGMLQuantizationType, dequantize

from dlf.checkpoints.gguf.file import GgufTensor
from dlf.errors import CheckpointError

__all__ = ["FLOATS", "KINDS", "read_values"]

FLOATS = {
    GGMLQuantizationType.F64: torch.float64,
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
QUANTIZED = tuple(
    GGMLQuantizationType[name]
    for name in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
)
KINDS = (*FLOATS, *QUANTIZED)
CHUNK_BYTES = 1 << 20  # read at once; the package needs some 40 times as much to dequantise them


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
    columns = tensor.shape[-1]
    found = torch.empty(tensor.shape, dtype=dtype or torch.float32)
    rows = found.view(-1, columns)
    row_bytes = tensor.nbytes // len(rows)
    step = max(1, CHUNK_BYTES // row_bytes)
    with open(tensor.path, "rb") as file, np.errstate(all="ignore"):  # the caller checks that all are finite
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            content = os.pread(file.fileno(), len(part) * row_bytes, tensor.offset + first * row_bytes)
            if len(content) < len(part) * row_bytes:
                raise _shorter(tensor)
            blocks = np.frombuffer(content, np.uint8).reshape(len(part), row_bytes)
            part.copy_(torch.from_numpy(dequantize(blocks, tensor.kind)))
    return found


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
