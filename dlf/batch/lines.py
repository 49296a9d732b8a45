"""Reads and writes JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from dlf.batch.prompts import Part, Row

__all__ = ["LineReader", "as_lines"]

MAX_LINE_BYTES = 8 << 20  # as of a request to the server
MAX_PART_BYTES = 64 << 20  # a part is held in memory
MARK = b"\xef\xbb\xbf"


class LineReader:
    """A file with a JSON object on each line; empty lines are no rows."""

    def __init__(self, path: str) -> None:
        self._path = path

    def parts(self, most_rows: int) -> list[Part]:
        """Divide the file; a part ends early if its lines are long."""
        found: list[Part] = []
        first = rows = place = line = 0
        with open(self._path, "rb") as file:
            for number, start, content in _lines(file):
                if content is not None and not content.strip():
                    continue
                if rows == most_rows or (rows and file.tell() - place > MAX_PART_BYTES):
                    found.append(Part(len(found), first, rows, place, line))
                    first, rows = first + rows, 0
                if not rows:
                    place, line = start, number
                rows += 1
        return [*found, Part(len(found), first, rows, place, line)] if rows else found

    def read(self, part: Part) -> tuple[list[Row], None]:
        """Return the rows of a part."""
        found: list[Row] = []
        with open(self._path, "rb") as file:
            file.seek(part.place)
            for number, _, content in _lines(file, part.within):
                if content is None or content.strip():
                    found.append(_row(part.first + len(found), f"{os.path.basename(self._path)}:{number}", content))
                if len(found) == part.rows:
                    return found, None
        raise ValueError(f"{self._path} became shorter while it was read; run the batch again")


def _lines(file: BinaryIO, number: int = 1) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield number, place and content of each line; the content of a line that is too long is None, and not kept."""
    while True:
        start = file.tell()
        line = more = file.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        whole = len(line) <= MAX_LINE_BYTES
        while more and not more.endswith(b"\n"):
            more = file.readline(MAX_LINE_BYTES)
        yield number, start, line.removeprefix(MARK if not start else b"") if whole else None
        number += 1


def _row(number: int, place: str, content: bytes | None) -> Row:
    if content is None:
        return Row(number, place, {}, f"{place} is longer than {MAX_LINE_BYTES >> 20} MiB; shorten it")
    try:
        values = json.loads(content.decode("utf-8"), parse_constant=_refuse)
    except UnicodeDecodeError:
        return Row(number, place, {}, f"{place} is no UTF-8 text; save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return Row(number, place, {}, f"{place} is no JSON: {error!s:.200}")
    if not isinstance(values, dict):
        return Row(number, place, {}, f"{place} must be a JSON object, not {type(values).__name__}")
    return Row(number, place, values)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def as_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """Rows as JSON lines in UTF-8; half of a surrogate pair is escaped."""
    return b"".join(_written(row).encode("utf-8", "backslashreplace") + b"\n" for row in rows)


_written = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
