"""Hashes a checkpoint's weights; the hash names what is derived from them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

__all__ = ["MEMORY", "content_hash", "file_hash", "sha256"]

# A file written this shortly before it was hashed may be written again without its times changing.
SETTLED_SECONDS = 2.0
MEMORY = "hashes"


def content_hash(shards: Mapping[Path, list[str]], cache: Path) -> str:
    """Return one hash of a checkpoint's files, and of the names of the tensors taken from each.

    Parameters
    ----------
    shards
        Names of the tensors taken from each file.
    cache
        Folder in which the hashes of files are remembered, so that the files need not be read every time.
    """
    parts = [[file_hash(path, cache), sorted(names)] for path, names in shards.items()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def file_hash(path: Path, cache: Path) -> str:
    """Hash of a file, remembered under its path and everything that changes when its content does.

    Size, modification time and inode miss a file that was changed in place and given its old time back. The change time
    does not: the system sets it at every write and nobody can choose it. A remembered hash is only the name under which
    quantized weights are looked up: a wrong one finds none, or those of the file that has this hash. So a damaged
    memory costs time, and only somebody who may write to the user's cache, where the weights themselves lie, can forge
    one.
    """
    before = os.stat(path)
    note = cache / MEMORY / _identity(path, before)
    with contextlib.suppress(OSError, ValueError):
        known = note.read_text("ascii")
        if re.fullmatch("[0-9a-f]{64}", known):
            return known
    begin = time.time()
    found = sha256(path)
    unchanged = _identity(path, os.stat(path)) == note.name
    if unchanged and before.st_ctime + SETTLED_SECONDS < begin:
        with contextlib.suppress(OSError):  # storing the weights reports a cache that cannot be written
            _write(note, found)
    return found


def sha256(path: Path) -> str:
    """Hash of a file's content, never a remembered one."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity(path: Path, stat: os.stat_result) -> str:
    parts = [os.path.realpath(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_dev, stat.st_ino]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    with open(descriptor, "w") as file:
        file.write(text)
    os.replace(temporary, path)
