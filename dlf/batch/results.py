"""The folder of a batch: a manifest, and a file for each part whose rows are all answered.

A file gets its name when it is complete and on the disk. So whatever was killed, a part is whole or missing, and a
second run writes what is missing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dlf.errors import OptionError
from dlf.support.fields import read_json

__all__ = ["Results"]

MANIFEST = "manifest.json"
FORMAT = 1
PART = re.compile(r"part-(\d{6})\.(?:jsonl|parquet)")
LEFT = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
WORDS = {
    "input": "the prompts have another content",
    "recipe": "the recipe is another",
    "defaults": "the defaults are others",
    "seed": "the seed is another",
    "rows_per_part": "rows_per_part is another",
}


class Results:
    """The folder of a batch.

    Parameters
    ----------
    path
        The folder.
    columnar
        Whether its parts are in Parquet format.
    """

    def __init__(self, path: str | os.PathLike[str], columnar: bool) -> None:
        self._folder = Path(os.path.expanduser(path))
        self._ending = "parquet" if columnar else "jsonl"

    @contextlib.contextmanager
    def opened(self, manifest: Mapping[str, Any]) -> Iterator[set[int]]:
        """Begin a batch or go on with it; yields the numbers of the parts that are there. No other run may write.

        Raises
        ------
        OptionError
            If the folder belongs to another batch, to another program or to a run that still writes.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with _locked(self._folder):
            names = os.listdir(self._folder)
            if MANIFEST in names:
                self._compare(read_json(self._folder / MANIFEST), manifest)
            elif [name for name in names if not LEFT.fullmatch(name)]:
                raise OptionError(f"{self._folder} is not empty and no folder of a batch; choose another", "output")
            for name in names:
                if LEFT.fullmatch(name):  # a killed run was writing it
                    os.unlink(self._folder / name)
            if MANIFEST not in names:
                content = json.dumps({"format": FORMAT, **manifest}, indent=2) + "\n"
                self._write(MANIFEST, content.encode())
            yield {int(found[1]) for name in names if (found := PART.fullmatch(name))}

    def has(self, number: int) -> bool:
        """Whether a part is there."""
        return (self._folder / self._name(number)).exists()

    def write(self, number: int, content: bytes) -> None:
        """Write a part; one that is there already is replaced by the same content."""
        self._write(self._name(number), content)

    def _name(self, number: int) -> str:
        return f"part-{number:06d}.{self._ending}"

    def _compare(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        if found.get("format") != FORMAT:
            raise OptionError(f"{self._folder} was written by another version of dlf; choose another folder", "output")
        others = [text for name, text in WORDS.items() if found.get(name) != wanted[name]]
        if others:
            raise OptionError(
                f"{self._folder} has the results of another batch: {', '.join(others)}; choose another folder, or "
                "remove it",
                "output",
            )

    def _write(self, name: str, content: bytes) -> None:
        temporary = self._folder / f".{name}.{secrets.token_hex(8)}.tmp"
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._folder / name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        with _descriptor(self._folder) as folder:
            os.fsync(folder)


@contextlib.contextmanager
def _descriptor(folder: Path) -> Iterator[int]:
    found = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield found
    finally:
        os.close(found)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder; the lock of a process that was killed is free."""
    with _descriptor(folder) as found:
        try:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise OptionError(f"another run writes into {folder}; wait for it, or end it", "output") from None
            # A file system without locks.
        yield
