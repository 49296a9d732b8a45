"""Tables of scores: definitions of rows and columns, and their figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.quality.estimate import Estimate, mean
from bench.quality.evaluate import Scorer

__all__ = ["Column", "Row", "Table", "filled"]

RATIO, SHARE = "of fine-tuned", "of the gap"


@dataclass(frozen=True)
class Column:
    """A task, or the mean of several."""

    title: str
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """The systems of a row, by task; several systems give the mean of their scores for each item."""

    title: str
    systems: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Table:
    """Rows and columns; the column `against` compares rows with a base and an upper bound."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    base: Row
    tuned: Row | None = None
    against: Column | None = None
    note: str = ""


@dataclass(frozen=True)
class Filled:
    """A table with its figures; a cell is None if a system was not run."""

    table: Table
    headings: list[str]
    cells: list[list[Estimate | None]] = field(repr=False)

    def cell(self, row: str, heading: str) -> Estimate | None:
        rows = [one.title for one in self.table.rows]
        return self.cells[rows.index(row)][self.headings.index(heading)]

    def as_json(self) -> dict[str, Any]:
        """Values with the ends of their 95 % intervals."""
        rows = {}
        for row, cells in zip(self.table.rows, self.cells, strict=True):
            rows[row.title] = {
                heading: [round(number, 5) for number in (cell.value, *cell.interval())]
                for heading, cell in zip(self.headings, cells, strict=True)
                if cell is not None
            }
        return {"title": self.table.title, "value, low, high": rows}

    def as_markdown(self) -> str:
        """Percentages, with half the width of their intervals."""
        lines = [["", *self.headings], ["---", *["---:"] * len(self.headings)]]
        for row, cells in zip(self.table.rows, self.cells, strict=True):
            lines.append([row.title, *(written(cell) for cell in cells)])
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"### {self.table.title}\n\n{text}\n" + (f"\n{self.table.note}\n" if self.table.note else "")


def written(cell: Estimate | None) -> str:
    """``"46.1 ± 1.2"``, in percent."""
    if cell is None or not np.isfinite(cell.value):
        return "–"
    low, high = cell.interval()
    return f"{100 * cell.value:.1f} ± {50 * (high - low):.1f}"


def estimate(row: Row, task: str, scorer: Scorer) -> Estimate | None:
    scores = [scorer.scores(system, task) for system in row.systems.get(task, ())]
    found = [one for one in scores if one is not None]
    return Estimate.of(np.mean(found, axis=0), task) if found and len(found) == len(scores) else None


def column(row: Row, of: Column, scorer: Scorer) -> Estimate | None:
    cells = [estimate(row, task, scorer) for task in of.tasks]
    found = [cell for cell in cells if cell is not None]
    return mean(found) if found and len(found) == len(cells) else None


def filled(table: Table, scorer: Scorer) -> Filled:
    """Compute the figures of a table."""
    headings = [one.title for one in table.columns]
    base = tuned = None
    if table.tuned is not None and table.against is not None:
        base, tuned = column(table.base, table.against, scorer), column(table.tuned, table.against, scorer)
    if tuned is not None:
        headings += [RATIO, SHARE]
    cells = []
    for row in table.rows:
        cells.append([column(row, one, scorer) for one in table.columns])
        if tuned is not None and base is not None and table.against is not None:
            own = column(row, table.against, scorer)
            cells[-1] += [None, None] if own is None else [own / tuned, (own - base) / (tuned - base)]
    return Filled(table, headings, cells)
