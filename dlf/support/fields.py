"""Reads the JSON files of a checkpoint, which are untrusted: sizes are bounded and types are checked."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from dlf.errors import CheckpointError

__all__ = ["MAX_VOCAB_SIZE", "Fields", "check_fetched", "parse_json", "read_bytes", "read_json"]

MAX_JSON_BYTES = 16 << 20
MAX_VOCAB_SIZE = 4_000_000
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class Fields:
    """A JSON object whose values are checked as they are read; ``where`` begins every error message."""

    def __init__(self, values: dict[str, Any], defaults: dict[str, Any], where: str) -> None:
        self._values = defaults | values
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def raw(self, *keys: str) -> Any:
        """Value, unchecked, of the first of the keys that has one."""
        return next((self._values[key] for key in keys if key in self), None)

    def error(self, key: str, wanted: str) -> CheckpointError:
        """Return the error for a key whose value is not `wanted`."""
        got = "nothing" if key not in self._values else f"{self._values[key]!r:.80}"
        return CheckpointError(
            f"{self.where}: {key!r:.80} must be {wanted}, not {got}; correct the file or fetch it again"
        )

    def integer(self, key: str, low: int, high: int) -> int:
        """Return an integer from `low` to `high`."""
        value = self._values.get(key)
        if type(value) is not int or not low <= value <= high:  # type(): a bool is an int to isinstance
            raise self.error(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        """Return a number from `low` to `high`."""
        value = self._values.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:  # so a NaN fails
            raise self.error(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def numbers(self, key: str, count: int, low: float, high: float) -> list[float]:
        """Return a list of `count` numbers from `low` to `high`."""
        value = self._values.get(key)
        if not isinstance(value, list) or len(value) != count:
            raise self.error(key, f"a list of {count} numbers from {low:g} to {high:g}")
        items = Fields({f"{key}[{i}]": one for i, one in enumerate(value)}, {}, self.where)
        return [items.number(name, low, high) for name in items._values]

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self._values.get(key)
        if type(value) is not bool:
            raise self.error(key, "true or false")
        return value

    def table(self, key: str) -> dict[str, Any]:
        """Return a nested object; null is an empty one."""
        value = self._values.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.error(key, "an object or null")
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        """Return token ids written as null, one integer or a list of them."""
        value = self._values.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if len(ids) > 1024 or any(type(i) is not int or not 0 <= i < MAX_VOCAB_SIZE for i in ids):
            raise self.error(key, "a token id, a list of token ids or null")
        return tuple(ids)


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read one JSON object from a file of at most `max_bytes`; a byte order mark at its beginning is skipped.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If it cannot be read, is too large, no JSON, or JSON that is not an object.
    """
    return parse_json(read_bytes(path, max_bytes), path)


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """Parse the JSON object in the content of a file; errors are those of `read_json`."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError too
        raise CheckpointError(f"{path} is not valid JSON ({error}); fetch the checkpoint again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(values).__name__}; fetch it again")
    return values


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Read a whole file of at most `max_bytes`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If it cannot be read, is too large, or is a Git LFS pointer.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for a writer
            raise CheckpointError(f"{path} is no file; fetch the checkpoint again")
        with open(path, "rb") as file:
            content = file.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        missing = f"{path} is missing: a checkpoint folder needs it; fetch the checkpoint again"
        raise FileNotFoundError(missing) from error
    except OSError as error:  # no permission, a name that is too long, links in a circle, a bad disk
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its name and permissions") from error
    if len(content) > max_bytes:
        raise CheckpointError(f"{path} is larger than {max_bytes >> 20} MiB, more than any valid file of its kind")
    check_fetched(path, content)
    return content


def check_fetched(path: Path, beginning: bytes) -> None:
    """Raise CheckpointError if a file with this beginning is the pointer of Git LFS to a large file."""
    if beginning.startswith(LFS_POINTER):
        raise CheckpointError(
            f"{path} is a Git LFS pointer and not the file itself; run `git lfs pull` in its repository"
        )
