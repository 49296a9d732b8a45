"""Folders that results are written to: of this machine, or at an address of fsspec."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from dlf.checkpoints.remote import file_system, is_url
from dlf.errors import OptionError
from dlf.support.fields import read_bytes
from dlf.support.whole_file import whole_file

__all__ = ["MAX_MANIFEST_BYTES", "OutputFolder", "output_folder"]

MAX_MANIFEST_BYTES = 16 << 20
LEFT = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


class OutputFolder(Protocol):
    """A folder in which a file appears whole or not at all."""

    def opened(self) -> contextlib.AbstractContextManager[list[str]]:
        """Make the folder if it is not there, and yield the names in it; no other run may write meanwhile."""

    def has(self, name: str) -> bool:
        """Whether a file is there."""

    def read(self, name: str) -> bytes:
        """Read a small file."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file, or replace it."""


def output_folder(path: str) -> OutputFolder:
    """Return a folder by its path or address."""
    return _Remote(path) if is_url(path) else _Local(Path(path))


class _Local:
    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def opened(self) -> Iterator[list[str]]:
        self._path.mkdir(parents=True, exist_ok=True)
        with _descriptor(self._path) as folder:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno == errno.EWOULDBLOCK:
                    raise OptionError(
                        f"another run writes into {self._path}; wait for it, or end it", "output"
                    ) from None
                # A file system without locks.
            names = os.listdir(self._path)
            for name in filter(LEFT.fullmatch, names):  # a killed run was writing it
                os.unlink(self._path / name)
            yield [name for name in names if not LEFT.fullmatch(name)]

    def has(self, name: str) -> bool:
        return (self._path / name).exists()

    def read(self, name: str) -> bytes:
        return read_bytes(self._path / name, MAX_MANIFEST_BYTES)

    def write(self, name: str, content: bytes) -> None:
        with whole_file(self._path / name) as file:
            file.write(content)
        with _descriptor(self._path) as folder:
            os.fsync(folder)


class _Remote:
    """Object stores write a file whole or not at all; they have no locks."""

    def __init__(self, url: str) -> None:
        self._system, self._root = file_system(url.rstrip("/"))

    @contextlib.contextmanager
    def opened(self) -> Iterator[list[str]]:
        self._system.makedirs(self._root, exist_ok=True)
        self._system.invalidate_cache()
        yield [os.path.basename(path.rstrip("/")) for path in self._system.ls(self._root, detail=False)]

    def has(self, name: str) -> bool:
        self._system.invalidate_cache()
        return bool(self._system.exists(f"{self._root}/{name}"))

    def read(self, name: str) -> bytes:
        with self._system.open(f"{self._root}/{name}", "rb") as file:
            return bytes(file.read(MAX_MANIFEST_BYTES))

    def write(self, name: str, content: bytes) -> None:
        self._system.pipe_file(f"{self._root}/{name}", content)


@contextlib.contextmanager
def _descriptor(folder: Path) -> Iterator[int]:
    found = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield found
    finally:
        os.close(found)
