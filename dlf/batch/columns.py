"""Reads and writes files in Parquet format."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from dlf.batch.prompts import Part, Row

try:
    import pyarrow
    import pyarrow.parquet
except ImportError as error:
    raise ImportError("files in Parquet format need pyarrow: pip install 'dlf[parquet]'") from error

__all__ = ["ColumnReader", "as_columns"]

BROKEN = (pyarrow.ArrowException, OSError, ValueError)
READ_AT_ONCE = 1024  # rows
TEXTS = pyarrow.string()
OUTPUT = pyarrow.struct(
    {
        "text": TEXTS,
        "tokens": pyarrow.list_(pyarrow.int64()),
        "logprobs": pyarrow.list_(pyarrow.float64()),
        "logprob": pyarrow.float64(),
        "is_greedy": pyarrow.list_(pyarrow.bool_()),
        "finish_reason": TEXTS,
        "prompt_tokens": pyarrow.int64(),
        "completion_tokens": pyarrow.int64(),
        "more": TEXTS,
    }
)


class ColumnReader:
    """A file in Parquet format. A part lies within one of its row groups."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except BROKEN as error:
            raise ValueError(f"{path} is no file in Parquet format: {error!s:.200}") from error
        self._group: int | None = None
        self._at = 0  # row of the group that comes next
        self._batches: Iterator[Any] = iter(())

    def parts(self, most_rows: int) -> list[Part]:
        """Divide each of the row groups."""
        names = self._file.schema_arrow.names
        taken = [name for name in names if name in ("error", "response" if "body" in names else "output")]
        if taken:
            raise ValueError(f"{self._path} has a column {taken[0]!r} already, where results go; rename it")
        found: list[Part] = []
        first = 0
        for group in range(self._file.metadata.num_row_groups):
            size = self._file.metadata.row_group(group).num_rows
            for begin in range(0, size, most_rows):
                rows = min(most_rows, size - begin)
                found.append(Part(len(found), first, rows, begin, group))
                first += rows
        return found

    def read(self, part: Part) -> tuple[list[Row], Any]:
        """Return the rows of a part and their table. Parts that are read in order cost one pass over their group."""
        try:
            if self._group != part.within or self._at > part.place:
                self._group, self._at = part.within, 0
                self._batches = self._file.iter_batches(READ_AT_ONCE, row_groups=[part.within])
            table = self._take(part)
            values = table.to_pylist()
        except BROKEN as error:
            raise ValueError(f"{self._path}: row group {part.within} cannot be read: {error!s:.200}") from error
        name = os.path.basename(self._path)
        return [Row(part.first + i, f"{name}: row {part.first + i}", one) for i, one in enumerate(values)], table

    def _take(self, part: Part) -> Any:
        found: list[Any] = []
        end = part.place + part.rows
        while self._at < end:
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError("it has fewer rows than it says")
            begin, self._at = self._at, self._at + len(batch)
            if self._at > part.place:
                found.append(batch.slice(max(0, part.place - begin), end - max(begin, part.place)))
            if self._at > end:  # the rest belongs to the next part
                self._batches, self._at = _before(batch.slice(end - begin), self._batches), end
        return pyarrow.Table.from_batches(found)


def _before(first: Any, others: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from others


def as_columns(table: Any, rows: Sequence[dict[str, Any]]) -> bytes:
    """A file of the columns of a table and those that its rows have in addition, as `answers.Answerer` makes them."""
    for name in [name for name in ("output", "response", "error") if name in rows[0]]:
        values = [row[name] for row in rows]
        if name == "output":
            column = pyarrow.array([None if value is None else _struct(value) for value in values], OUTPUT)
        else:
            texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
            column = pyarrow.array(texts, TEXTS)
        table = table.append_column(name, column)
    found = io.BytesIO()
    pyarrow.parquet.write_table(table, found)
    return found.getvalue()


def _struct(value: dict[str, Any]) -> dict[str, Any]:
    """An output whose fields of no fixed form are JSON."""
    more = {name: one for name, one in value.items() if name not in OUTPUT.names}
    return {name: value.get(name) for name in OUTPUT.names} | {"more": json.dumps(more) if more else None}
