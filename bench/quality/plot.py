"""Plots the tables as bars with their intervals, and α along an answer of each task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dlf
from bench.family import corpus
from bench.quality.tables import Filled
from dlf.plot import FAINT, INK, alpha_colour

__all__ = ["plot_tables", "plot_traces"]

COLOURS = (
    "#9aa3b2 #22262e #3288bd #fc8d59 #d53e4f #66a61e #7570b3 #e6ab02 #1b9e77 #a6761d #b3b3b3 #80b1d3 #fdb462".split()
)


def plot_tables(tables: Sequence[Filled], path: Path) -> None:
    """Plot each table as a panel, with a group of bars for each column."""
    figure = Figure(figsize=(11, 3.4 * len(tables)), layout="constrained", facecolor="white")
    for axes, table in zip(np.atleast_1d(figure.subplots(len(tables), 1)), tables, strict=True):
        _bars(axes, table)
    figure.savefig(path, dpi=130)


def _bars(axes: Axes, table: Filled) -> None:
    shown = len(table.table.columns)
    width = 0.84 / len(table.cells)
    for i, (row, cells) in enumerate(zip(table.table.rows, table.cells, strict=True)):
        for column, cell in enumerate(cells[:shown]):
            if cell is None:
                continue
            low, high = cell.interval()
            x = column - 0.42 + (i + 0.5) * width
            label = row.title.replace("`", "") if column == 0 else None
            axes.bar(x, 100 * cell.value, width * 0.9, color=COLOURS[i % len(COLOURS)], label=label)
            axes.plot([x, x], [100 * low, 100 * high], color=INK, linewidth=0.9)
    axes.set_xticks(range(shown), table.headings[:shown], color=INK, fontsize=9)
    axes.set_title(table.table.title, loc="left", fontsize=11, color=INK)
    axes.set_ylabel("%", color=INK, fontsize=9)
    axes.set_ylim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8, labelcolor=INK)


def plot_traces(models: Path, path: Path, threads: int) -> None:
    """Plot α at each token of dynamic fusion's answer to the first held-out problem of each task."""
    figure = Figure(figsize=(11, 2.3 * len(corpus.SEEN)), layout="constrained", facecolor="white")
    for axes, task in zip(figure.subplots(len(corpus.SEEN), 1), corpus.SEEN, strict=True):
        expert = dlf.Expert(models / f"{task}-expert", base=models / "small-base")
        with dlf.Engine(models / "large-base", experts=[expert], threads=threads) as engine:
            pieces = list(engine.stream(corpus.held_out(task, 1)[0].prompt, max_new_tokens=48))
        alpha = [float(piece.alpha[0]) for piece in pieces]
        colours = [tuple(channel / 255 for channel in alpha_colour(value)) for value in alpha]
        axes.bar(range(len(alpha)), alpha, width=0.86, color=colours, edgecolor="#8a8f99", linewidth=0.4)
        texts = [piece.text.strip(" ").replace("\n", "⏎") or "·" for piece in pieces]
        axes.set_xticks(range(len(texts)), texts, rotation=90, fontsize=7, family="monospace", color=INK)
        axes.axhline(1.0, color="#8a8f99", linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_title(task, loc="left", fontsize=10, color=INK)
        axes.set_ylabel("α", color=INK, fontsize=9)
        axes.set_ylim(0, 2.08)
        axes.set_xlim(-0.6, 47.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=INK, labelsize=7, length=0)
    figure.savefig(path, dpi=130)
