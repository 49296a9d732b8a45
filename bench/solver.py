"""Time of one fusion solve through the public function, beside the paper's grid search in PyTorch and in NumPy."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.machine import value_of
from bench.peers.paper_grid import GRID, torch_grid
from dlf import fusion

VOCABULARIES = [32_000, 128_256, 151_936, 262_144]
EXPERTS = [1, 4, 16]
BATCHES = [1, 8]
ROWS = 16  # different logits, to average the number of sweeps
LEAST = 3  # calls that are timed at least
ROUNDS = 5  # rounds of turns
TORCH, NUMPY = "PyTorch, grid", "NumPy, grid"  # the paper's grid
Logits = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Array = npt.NDArray[np.float32]


def language_logits(vocab: int, experts: int, seed: int) -> Logits:
    """Large [1, V], base [1, V] and experts [1, T, V]: a long tail that all share, with noise for each."""
    generator = torch.Generator().manual_seed(seed)
    shared = -2.0 * torch.rand(1, vocab, generator=generator).log().neg().log()  # Gumbel
    return _variations(1.3 * shared, shared, experts, 1.0, generator)


def peaked_logits(vocab: int, experts: int, seed: int) -> Logits:
    """The same with 40 candidates far above the rest, as within a sentence: one token has most of the mass."""
    generator = torch.Generator().manual_seed(seed)
    shared = 2.2 * torch.randn(1, vocab, generator=generator)
    candidates = torch.randperm(vocab, generator=generator)[:40]
    shared[0, candidates] += torch.linspace(20.0, 8.0, 40) + torch.randn(40, generator=generator)
    return _variations(1.1 * shared, shared, experts, 0.5, generator)


def _variations(
    large: torch.Tensor, base: torch.Tensor, experts: int, noise: float, generator: torch.Generator
) -> Logits:
    def normal(*shape: int) -> torch.Tensor:
        return noise * torch.randn(*shape, generator=generator)

    strength = 0.2 + 0.8 * torch.rand(1, experts, 1, generator=generator)
    base = base + normal(*base.shape)
    return large + normal(*large.shape), base, base[:, None] + strength * normal(1, experts, base.shape[1])


KINDS = {"long tail": language_logits, "peaked": peaked_logits}


def numpy_grid(large: Array, base: Array, experts: Array) -> list[tuple[int, float]]:
    """`torch_grid` in NumPy."""

    def log_probabilities(logits: Array) -> Array:
        shifted = logits - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    def divergence(p: Array, q: Array) -> Array:
        return (np.exp(p) * (p - q)).sum(-1)

    alphas = GRID.astype(np.float32)
    found = []
    for z, b, tuned in zip(large, log_probabilities(base), log_probabilities(experts), strict=True):
        p = log_probabilities(z)
        a, c = divergence(tuned, b).mean(), divergence(b, tuned).mean()
        losses = []
        for expert in tuned:
            fused = log_probabilities(z + alphas[:, None] * (expert - b))
            losses.append((divergence(fused, p) - a) ** 2 + (divergence(p, fused) - c) ** 2)
        best = int(np.argmin(losses))
        found.append((best // len(GRID), float(GRID[best % len(GRID)])))
    return found


def take_turns(calls: dict[str, Callable[[], object]], budget: float) -> dict[str, list[float]]:
    """Seconds of many calls of each contestant, in rounds, until its budget is used; the first call is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(ROUNDS + 1):
        for name, call in calls.items():
            end = time.perf_counter() + budget / ROUNDS
            while sum(times[name]) < budget or len(times[name]) < LEAST:
                start = time.perf_counter()
                call()
                now = time.perf_counter()
                if turn > 0 or now - start > budget / ROUNDS:  # too slow to warm up
                    times[name].append(now - start)
                if turn == 0 or now > end:
                    break
    return times


def measure(vocab: int, experts: int, batch: int, combine: str, threads: int, budget: float) -> list[dict[str, Any]]:
    """Times of dlf on both kinds of logits and, with `select`, of the grids, whose time does not depend on the kind."""
    shape = {"vocab": vocab, "experts": experts, "batch": batch}
    options: dict[str, Any] = {"combine": combine, "threads": threads}
    calls: dict[str, Callable[[], object]] = {}
    sweeps = {}
    for kind, make in KINDS.items():
        rows = [make(vocab, experts, seed) for seed in range(max(ROWS // experts, batch))]
        inputs = [
            tuple(torch.cat(part) for part in zip(*rows[start : start + batch], strict=True))
            for start in range(0, len(rows), batch)
        ]
        name = f"dlf, {combine}, {kind}"
        sweeps[name] = float(torch.cat([fusion.solve(*some, **options).sweeps for some in inputs]).double().mean())
        calls[name] = partial(_solve_next, cycle(inputs), options)
        if combine == "select" and kind == "long tail":
            calls[TORCH] = partial(torch_grid, *inputs[0])
            calls[NUMPY] = partial(numpy_grid, *(part.numpy() for part in inputs[0]))
    times = take_turns(calls, budget)
    medians = {name: statistics.median(some) for name, some in times.items()}
    peers = {key: medians[name] for key, name in (("torch_ratio", TORCH), ("numpy_ratio", NUMPY)) if name in medians}
    return [
        shape
        | {"name": name, "sweeps": sweeps.get(name), "median_s": median, "min_s": min(times[name])}
        | {key: peer / median for key, peer in peers.items()}
        for name, median in medians.items()
    ]


def _solve_next(inputs: Iterator[Logits], options: dict[str, Any]) -> None:
    fusion.solve(*next(inputs), **options)


def machine(threads: int) -> dict[str, object]:
    """The machine of the measurement."""
    processor = value_of("/proc/cpuinfo", "model name")
    return {"processor": processor, "threads": threads, "torch": torch.__version__, "numpy": np.__version__}


def plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Milliseconds over the vocabulary: a column for each number of experts, a row for each batch."""
    from matplotlib.figure import Figure  # imported here, since the other benchmarks do not need it

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots(len(BATCHES), len(EXPERTS), sharex=True, sharey=True)
    styles = {"dlf, select, long tail": "o-C0", "dlf, select, peaked": "o--C0", TORCH: "s-C1", NUMPY: "^-C2"}
    for (batch, experts), axis in zip(product(BATCHES, EXPERTS), axes.flat, strict=True):
        for name, style in styles.items():
            some = [r for r in rows if (r["name"], r["experts"], r["batch"]) == (name, experts, batch)]
            axis.plot([r["vocab"] for r in some], [1e3 * r["median_s"] for r in some], style, label=name, markersize=4)
        axis.set(xscale="log", yscale="log", title=f"T = {experts}, batch {batch}")
        axis.set_xticks(VOCABULARIES, ["32k", "128k", "", "262k"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("vocabulary")
    figure.supylabel("ms")
    figure.suptitle(title)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)


def report(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title)
    for column in ("V", "T", "batch", "", "sweeps", "ms", "PyTorch /", "NumPy /"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        ratios = [f"{row[key]:.1f}" if key in row else "-" for key in ("torch_ratio", "numpy_ratio")]
        sweeps = "-" if row["sweeps"] is None else f"{row['sweeps']:.2f}"
        shape = [f"{row['vocab']:,}", str(row["experts"]), str(row["batch"])]
        table.add_row(*shape, row["name"], sweeps, f"{1e3 * row['median_s']:.3f}", *ratios)
    Console(width=max(100, Console().width)).print(table)


def main(
    threads: Annotated[int, typer.Option(help="Threads of the solver and of PyTorch; NumPy uses one.")] = 1,
    budget: Annotated[float, typer.Option(help="Seconds for each contestant at each shape.")] = 0.5,
    output: Annotated[Path, typer.Option(help="Folder for the results: JSON and a plot.")] = Path("bench/results"),
) -> None:
    """Time `dlf.fusion.solve` and count its sweeps over the vocabulary, beside the paper's grid in the same run."""
    torch.set_num_threads(threads)
    shapes = [(v, t, b, "select") for v, t, b in product(VOCABULARIES, EXPERTS, BATCHES)]
    shapes += [(v, t, 1, mode) for v, (mode, t) in product(VOCABULARIES, (("grid", 1), ("joint", 4)))]
    rows = []
    for vocab, experts, batch, combine in track(shapes, "solving", transient=True):
        rows += measure(vocab, experts, batch, combine, threads, budget)
    where = machine(threads)
    title = f"one call of solve, {threads} thread{'s' * (threads != 1)} of {where['processor']}"
    report(rows, title)
    output.mkdir(parents=True, exist_ok=True)
    stem = "solver" if threads == 1 else f"solver-{threads}-threads"
    (output / f"{stem}.json").write_text(json.dumps({"machine": where, "rows": rows}, indent=2) + "\n")
    plot(rows, title, output / f"{stem}.png")
