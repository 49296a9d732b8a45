"""Plots the time per token of every engine as bars, each with the time of reading its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.latency.rows import Row
from bench.machine import milliseconds

COLOURS = {"dlf": "#1b6ca8", "dlf-large": "#8fbfe0"}
PEER = "#b8b8b8"


def plot(rows: Sequence[Row], title: str, target: Path) -> None:
    """Writes a PNG; raises ImportError without matplotlib."""
    from matplotlib import use

    use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    places = []
    place = 0.0
    for i, row in enumerate(rows):
        place += 1.0 if i == 0 or row["weights"] == rows[i - 1]["weights"] else 1.8
        places.append(place)
    figure, axes = pyplot.subplots(figsize=(9, 0.34 * place + 1.4), layout="constrained")
    widest = 1e3 * max(row["p90_s"] for row in rows)
    for row, y in zip(rows, places, strict=True):
        median, low, high, floor = (1e3 * row[key] for key in ("median_s", "p10_s", "p90_s", "floor_s"))
        axes.barh(y, median, height=0.76, color=COLOURS.get(row["name"], PEER))
        axes.plot([low, high], [y, y], color="black", linewidth=1)
        axes.plot([floor, floor], [y - 0.38, y + 0.38], color="#c1272d", linewidth=2)
        ratio = "" if row["relative"] is None or row["name"] == "dlf" else f"   {row['relative']:.2f}×"
        axes.text(
            max(median, high) + 0.01 * widest, y, f"{milliseconds(row['median_s'])}{ratio}", va="center", fontsize=9
        )
    axes.set_yticks(places, [row["label"] for row in rows], fontsize=9)
    for width in dict.fromkeys(row["weights"] for row in rows):
        group = [y for row, y in zip(rows, places, strict=True) if row["weights"] == width]
        middle = (group[0] + group[-1]) / 2
        axes.text(1.01, middle, width, transform=axes.get_yaxis_transform(), va="center", weight="bold")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * widest)
    axes.set_xlabel("ms per token, median and 10 to 90 %; × is relative to fused dlf of the same width")
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    floor_mark = Line2D([], [], color="#c1272d", linewidth=2, label="reading its weights once, at this run's bandwidth")
    figure.legend(handles=[floor_mark], loc="outside lower left", frameon=False, fontsize=9)
    figure.savefig(target, dpi=150)
    pyplot.close(figure)
