"""Tables of the figures, for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from bench.latency.rows import Row
from bench.machine import milliseconds

GIB = 1 << 30


def tables(rows: Sequence[Row], title: str) -> Iterator[Table]:
    """Two tables: time per token; first token, loading and memory."""
    yield _table(rows, f"Time per token: {title}", TOKEN_COLUMNS)
    lengths = rows[0]["first_token_s"]
    first = {f"{length}": (lambda row, length=length: _short(row["first_token_s"][length])) for length in lengths}
    card = CARD_COLUMN if "card" in rows[0]["memory_after_run"] else {}
    title = "Seconds to the first token by prompt length; loading; GiB resident"
    yield _table(rows, title, first | MEMORY_COLUMNS | card)


def _short(value: float) -> str:
    """Two decimals, or three below 1: a card is often a hundred times as fast as a processor."""
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _table(rows: Sequence[Row], title: str, columns: dict) -> Table:  # type: ignore[type-arg]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("weights", no_wrap=True)
    table.add_column("engine", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    width = None
    for row in rows:
        if width not in (None, row["weights"]):
            table.add_section()
        name = "" if width == row["weights"] else row["weights"]
        width = row["weights"]
        style = "bold" if row["name"] == "dlf" else ""
        table.add_row(name, row["label"], *(show(row) for show in columns.values()), style=style)
    return table


TOKEN_COLUMNS = {
    "ms": lambda row: milliseconds(row["median_s"]),
    "10 .. 90 %": lambda row: f"{milliseconds(row['p10_s'])} .. {milliseconds(row['p90_s'])}",
    "× dlf": lambda row: f"{row['relative']:.2f}" if row["relative"] else "-",
    "floor": lambda row: milliseconds(row["floor_s"]),
    "GB/s": lambda row: f"{row['bytes_per_s'] / 1e9:.1f}",
    "share": lambda row: f"{100 * row['share']:.0f} %",
}
MEMORY_COLUMNS = {
    "load s": lambda row: f"{row['load_s']:.1f}",
    "peak": lambda row: f"{row['memory_after_run']['peak'] / GIB:.2f}",
    "own": lambda row: f"{row['memory_after_run']['anonymous'] / GIB:.2f}",
    "mapped": lambda row: f"{row['memory_after_run']['mapped'] / GIB:.2f}",
}
CARD_COLUMN = {"card": lambda row: f"{row['memory_after_run']['card'] / GIB:.2f}"}
