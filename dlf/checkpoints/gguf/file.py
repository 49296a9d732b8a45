"""Reads the header of a GGUF file: its metadata, and where each tensor lies.

A file is untrusted: each count and length is compared with the bytes that are left before anything is read by it.
Source: ``docs/gguf.md`` of ggml. The reader of the ``gguf`` package trusts counts, and takes 12 seconds and three times
the file's size for the vocabulary of Gemma; this one takes half a second.
"""

from __future__ import annotations

import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from dlf.errors import CheckpointError
from dlf.support.fields import MAX_VOCAB_SIZE, check_fetched

__all__ = ["GgufFile", "GgufTensor", "read_gguf"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_METADATA_BYTES = 256 << 20
MAX_KEYS = 4096
MAX_KEY_BYTES = 1024
MAX_TENSORS = 1 << 18
MAX_DIMENSIONS = 4
MAX_SIZE = 1 << 40  # elements of a tensor
MAX_FILES = 1024
MAX_ALIGNMENT = 1 << 16
SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
LEAST_STRING_BYTES = 8  # its length


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies.

    Attributes
    ----------
    kind
        Its type.
    shape
        Rows before columns, as in torch.
    path, offset, nbytes
        Its bytes; blocks of a row follow each other, and so do rows.
    """

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """The header of a model, which may lie in several files.

    Attributes
    ----------
    path
        The first file.
    files
        All of them.
    metadata
        Values by key: numbers, flags, strings, lists of strings, and numpy arrays of numbers and flags.
    tensors
        Tensors by their names in the file.
    """

    path: Path
    files: list[Path]
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file, and those of the files that a split one continues in.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or a part of a split one is missing.
    CheckpointError
        If a file is damaged, of an unknown version, or holds a type of tensor that is not known.
    """
    files = _parts(path)
    metadata: dict[str, Any] = {}
    tensors: dict[str, GgufTensor] = {}
    for number, one in enumerate(files):
        try:
            with open(one, "rb") as file:
                values, found = _Reader(file, one).header()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{one} is missing; fetch all {len(files)} files of the model") from error
        except OSError as error:
            raise CheckpointError(f"{one} cannot be read ({error.strerror}); check its permissions") from error
        if values.get("split.count", 1) not in (len(files), 0) or values.get("split.no", number) != number:
            raise CheckpointError(
                f"{one} says that it is part {values.get('split.no', 0)} of {values.get('split.count', 1)}, but is "
                f"named as {number + 1} of {len(files)}; give the first file under the name that it was fetched with"
            )
        twice = tensors.keys() & found.keys()
        if twice:
            raise CheckpointError(f"{one} holds tensor {min(twice)!r:.80} again; fetch the model again")
        metadata = metadata or values
        tensors |= found
    return GgufFile(files[0], files, metadata, tensors)


def _parts(path: Path) -> list[Path]:
    """Files of a model, given any of them."""
    match = SPLIT.fullmatch(path.name)
    if not match:
        return [path]
    count = int(match[3])
    if not 0 < int(match[2]) <= count <= MAX_FILES:
        raise CheckpointError(f"{path} is named as part {match[2]} of {match[3]}; give it its old name")
    return [path.with_name(f"{match[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


class _Reader:
    """Reads values one after the other; the file has at least as many bytes as each of them needs."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._size = os.fstat(file.fileno()).st_size
        self._left = min(self._size, MAX_METADATA_BYTES)

    def header(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        """Return metadata and tensors."""
        begin = self._file.peek(100)[:100] if hasattr(self._file, "peek") else b""
        check_fetched(self._path, begin)
        if self._bytes(4, "its first bytes") != MAGIC:
            raise CheckpointError(f"{self._path} is no GGUF file; give a model in GGUF format, or the folder of one")
        version = self._number("I", "its version")
        if version not in VERSIONS:
            raise CheckpointError(
                f"{self._path} has version {version} of GGUF, and dlf reads {' and '.join(map(str, VERSIONS))} in "
                "little-endian order; fetch a newer conversion of the model"
            )
        tensors = self._count(MAX_TENSORS, "tensors", 3 * LEAST_STRING_BYTES)
        keys = self._count(MAX_KEYS, "keys", LEAST_STRING_BYTES + 5)
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._string("a key", MAX_KEY_BYTES)
            if key in metadata:
                raise self._damaged(f"has the key {key!r:.80} twice")
            metadata[key] = self._value(key)
        return metadata, self._tensors(tensors, metadata)

    def _tensors(self, count: int, metadata: dict[str, Any]) -> dict[str, GgufTensor]:
        found: dict[str, tuple[GGMLQuantizationType, tuple[int, ...], int]] = {}
        for _ in range(count):
            name = self._string("the name of a tensor", MAX_KEY_BYTES)
            what = f"tensor {name!r:.80}"
            if name in found:
                raise self._damaged(f"has {what} twice")
            dimensions = self._number("I", what)
            if not 1 <= dimensions <= MAX_DIMENSIONS:
                raise self._damaged(f"says that {what} has {dimensions} dimensions")
            shape = struct.unpack(f"<{dimensions}Q", self._bytes(8 * dimensions, what))[::-1]
            if not 0 < math.prod(shape) <= MAX_SIZE:
                raise self._damaged(f"says that {what} has shape {list(shape)}")
            kind = self._number("I", what)
            if kind not in GGMLQuantizationType.__members__.values():
                raise CheckpointError(
                    f"{self._path}: {what} has type {kind}, which is not known; use a model of another quantization"
                )
            found[name] = GGMLQuantizationType(kind), shape, self._number("Q", what)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._damaged(f"says that tensors lie at multiples of {alignment!r:.20}")
        begin = -(-self._file.tell() // alignment) * alignment
        return {name: self._place(name, *one, begin) for name, one in found.items()}

    def _place(
        self, name: str, kind: GGMLQuantizationType, shape: tuple[int, ...], offset: int, begin: int
    ) -> GgufTensor:
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            raise self._damaged(f"says that tensor {name!r:.80} has rows of {shape[-1]}, not of blocks of {block}")
        nbytes = math.prod(shape) // block * block_bytes
        if begin + offset + nbytes > self._size:
            raise CheckpointError(
                f"{self._path} ends before tensor {name!r:.80} does; fetch the file again, it is not complete"
            )
        return GgufTensor(kind, shape, self._path, begin + offset, nbytes)

    def _value(self, key: str) -> Any:
        what = f"the value of {key!r:.80}"
        kind = self._number("I", what)
        if kind == STRING:
            return self._string(what, MAX_METADATA_BYTES)
        if kind != ARRAY:
            return _shortest(self._number(self._scalar(kind, what), what))
        kind = self._number("I", what)
        if kind == STRING:
            return [self._string(what, MAX_METADATA_BYTES) for _ in range(self._count(MAX_VOCAB_SIZE, what, 8))]
        form = np.dtype(self._scalar(kind, what)).newbyteorder("<")
        count = self._count(MAX_METADATA_BYTES, what, form.itemsize)
        return np.frombuffer(self._bytes(count * form.itemsize, what), form)

    def _scalar(self, kind: int, what: str) -> str:
        if kind not in SCALARS:
            raise self._damaged(f"has the unknown type {kind} for {what}")
        return SCALARS[kind]

    def _count(self, most: int, what: str, item_bytes: int) -> int:
        """Read a number of items that take at least `item_bytes` each."""
        count: int = self._number("Q", what)
        if count > most or count * item_bytes > self._left:
            raise self._damaged(f"says that it has {count} {what}")
        return count

    def _string(self, what: str, most: int) -> str:
        length = self._number("Q", what)
        if length > most:
            raise self._damaged(f"says that {what} has {length} bytes")
        # llama.cpp allows any bytes in a description, so they are no error.
        return self._bytes(length, what).decode("utf-8", "backslashreplace")

    def _number(self, form: str, what: str) -> Any:
        return struct.unpack("<" + form, self._bytes(struct.calcsize("<" + form), what))[0]

    def _bytes(self, count: int, what: str) -> bytes:
        if count > self._left:
            raise self._damaged(f"ends, or has over {MAX_METADATA_BYTES >> 20} MiB, before the end of {what}")
        self._left -= count
        found = self._file.read(count)
        if len(found) < count:
            raise self._damaged(f"ends before the end of {what}")
        return found

    def _damaged(self, how: str) -> CheckpointError:
        return CheckpointError(f"{self._path} {how}; it is damaged or not complete, fetch it again")


def _shortest(value: Any) -> Any:
    """Return the decimal that a float was rounded from: 1e-05 for the float32 nearest to it."""
    if not isinstance(value, float):
        return value
    return float(str(np.float32(value))) if float(np.float32(value)) == value else value
