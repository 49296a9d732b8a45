"""Writes a safetensors file tensor by tensor; the library's own writer wants all of them at once."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from typing import BinaryIO

import torch

from dlf.checkpoints.precision import TensorLayout

__all__ = ["safetensors_header", "write_safetensors"]

ALIGNMENT = 64


def safetensors_header(layout: Mapping[str, TensorLayout], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """Return a file's header, and the offset of each tensor; tensors lie in the order of `layout`."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    places, end = {}, 0
    for name, one in layout.items():
        places[name] = end
        entries[name] = {"dtype": one.dtype, "shape": one.shape, "data_offsets": [end, end + one.nbytes]}
        end += one.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text, {name: 8 + len(text) + place for name, place in places.items()}


def write_safetensors(
    file: BinaryIO,
    layout: Mapping[str, TensorLayout],
    metadata: Mapping[str, str],
    tensors: Iterable[tuple[str, torch.Tensor]],
) -> None:
    """Write a whole file; the tensors may come in any order, each whole or in neighbouring stretches of its first axis.

    Raises
    ------
    OSError
        If the disk is full; this is raised before the first tensor is asked for.
    """
    header, places = safetensors_header(layout, metadata)
    last = list(layout)[-1]
    os.posix_fallocate(file.fileno(), 0, places[last] + layout[last].nbytes)
    file.write(header)
    ends = {name: place + layout[name].nbytes for name, place in places.items()}
    for name, tensor in tensors:
        file.seek(places[name])
        file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        places[name] += tensor.nbytes
    assert places == ends
