"""The prompts of a batch: an untrusted file of JSON lines or in Parquet format, divided into parts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dlf.checkpoints.remote import fetch_file, is_url
from dlf.errors import OptionError

__all__ = ["Part", "Prompts", "Reader", "Row", "look_through", "reader_of"]

LINES, COLUMNS = (".jsonl", ".ndjson"), (".parquet",)
MAX_PARTS = 1 << 20


@dataclass(frozen=True)
class Part:
    """Rows that lie side by side in the file, and whose results are written together.

    Attributes
    ----------
    number : int
        Number of the part.
    first : int
        Number of its first row.
    rows : int
        Number of its rows.
    place : int
        Where it begins: a byte of a file of lines, or a row of a row group.
    within : int
        The line of its first row, or its row group.
    """

    number: int
    first: int
    rows: int
    place: int
    within: int


@dataclass(frozen=True)
class Row:
    """A row of the file.

    Attributes
    ----------
    number : int
        Its number in the file, from 0.
    place : str
        Name of the file and line, for messages.
    values : dict
        Its columns; empty if it has a problem.
    problem : str or None
        Why it cannot be read.
    """

    number: int
    place: str
    values: dict[str, Any]
    problem: str | None = None


class Reader(Protocol):
    """Reads a file of prompts."""

    def parts(self, most_rows: int) -> list[Part]:
        """Divide the file into parts of at most so many rows.

        Raises
        ------
        ValueError
            If the file is damaged.
        """

    def read(self, part: Part) -> tuple[list[Row], Any]:
        """Return the rows of a part, and their table if the file is columnar.

        Raises
        ------
        ValueError
            If the file is damaged or has changed.
        """


@dataclass(frozen=True)
class Prompts:
    """A file that was looked through.

    Attributes
    ----------
    path : str
        The file.
    digest : str
        SHA-256 of its content.
    parts : list of Part
        All of it, in order.
    openai : bool
        Whether its rows have the form of OpenAI's batch files, as its first one that can be read.
    """

    path: str
    digest: str
    parts: Sequence[Part]
    openai: bool

    @property
    def rows(self) -> int:
        """Number of its rows."""
        return sum(part.rows for part in self.parts)

    @property
    def columnar(self) -> bool:
        """Whether it is in Parquet format, as its results then are."""
        return self.path.endswith(COLUMNS)


def look_through(path: str | os.PathLike[str], rows_per_part: int) -> Prompts:
    """Divide a file into parts, and hash it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it has an unknown ending or no rows, or is damaged.
    ImportError
        If it is in Parquet format, and pyarrow is not installed.
    """
    name = os.fspath(path)
    reader = reader_of(name)
    parts = reader.parts(rows_per_part)
    if not parts:
        raise ValueError(f"{name} has no rows; write one for each prompt")
    if len(parts) > MAX_PARTS:
        raise OptionError(f"{name} has more than {MAX_PARTS} parts; raise rows_per_part", "rows_per_part")
    first = next((row for row in reader.read(parts[0])[0] if row.problem is None), None)
    with open(fetch_file(name) if is_url(name) else name, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Prompts(name, digest, parts, first is not None and "body" in first.values)


def reader_of(path: str) -> Reader:
    """Return the reader of a file, by its ending. Errors are those of `look_through`."""
    if not path.endswith(LINES + COLUMNS):
        raise OptionError(f"{path!r:.300} must end with .jsonl, with JSON on each line, or with .parquet", "prompts")
    if is_url(path):
        path = str(fetch_file(path))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path!r:.300}")
    if path.endswith(LINES):
        from dlf.batch.lines import LineReader

        return LineReader(path)
    from dlf.batch.columns import ColumnReader

    return ColumnReader(path)
