"""Time of one fusion solve through the public function, beside the paper's grid search in PyTorch, in the same run."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.peers.transformers_loop import grid_alpha
from dlf import fusion

VOCABULARIES = [32_000, 128_256, 152_064]
ROWS = 20  # different logits, so that passes are an average
Logits = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def language_logits(vocab: int, experts: int, seed: int) -> Logits:
    """Large [1, V], base [1, V] and experts [1, T, V]: a peaked shape that all share, and what each makes of it."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    shared = -2.0 * torch.rand(1, vocab, generator=generator).log().neg().log()  # Gumbel
    strength = 0.2 + 0.8 * torch.rand(1, experts, 1, generator=generator)
    base = shared + normal(1, vocab)
    return 1.3 * shared + normal(1, vocab), base, base[:, None] + strength * normal(1, experts, vocab)


def seconds(call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of so many calls, after one that is not counted."""
    call()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def main(
    threads: Annotated[int, typer.Option(help="Threads of the solver and of PyTorch.")] = 1,
    repeats: Annotated[int, typer.Option(help="How often each of 20 rows is solved.")] = 15,
    output: Annotated[Path | None, typer.Option(help="Where to write the result as JSON.")] = None,
) -> None:
    """Time of `dlf.fusion.solve` on one row, and its passes over the vocabulary."""
    torch.set_num_threads(threads)
    rows = []
    for vocab in VOCABULARIES:
        for experts, combine in ((1, "select"), (1, "grid"), (4, "select"), (4, "joint"), (16, "select")):
            times: list[float] = []
            passes = []
            for seed in range(ROWS):
                large, base, tuned = language_logits(vocab, experts, seed)
                options = {"combine": combine, "threads": threads}
                passes.append(int(fusion.solve(large, base, tuned, **options).passes[0]))
                times += seconds(lambda: fusion.solve(large, base, tuned, **options), repeats)  # noqa: B023
            rows.append(_row(vocab, experts, f"dlf, {combine}", times, statistics.fmean(passes)))
        times = []
        for seed in range(ROWS):
            large, base, tuned = language_logits(vocab, 1, seed)
            times += seconds(lambda: grid_alpha(large[0], tuned[0, 0], base[0]), max(1, repeats // 5))  # noqa: B023
        rows.append(_row(vocab, 1, "PyTorch, the paper's grid", times, None))
    _print(rows, threads)
    if output is not None:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        output.write_text(json.dumps({"rows": rows, "machine": machine | {"threads": threads}}, indent=2))


def _row(vocab: int, experts: int, name: str, times: list[float], passes: float | None) -> dict[str, object]:
    low, *_, high = statistics.quantiles(times, n=10)
    median = statistics.median(times)
    return {
        "vocab": vocab,
        "experts": experts,
        "name": name,
        "passes": passes,
        "median_s": median,
        "p10_s": low,
        "p90_s": high,
    }


def _print(rows: list[dict[str, object]], threads: int) -> None:
    table = Table(title=f"one solve, {threads} thread{'s' * (threads != 1)}")
    for column in ("V", "T", "", "passes", "ms", "10 % .. 90 %"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        passes = "-" if row["passes"] is None else f"{row['passes']:.1f}"
        spread = f"{1e3 * row['p10_s']:.2f} .. {1e3 * row['p90_s']:.2f}"
        table.add_row(
            f"{row['vocab']:,}", str(row["experts"]), row["name"], passes, f"{1e3 * row['median_s']:.2f}", spread
        )
    Console().print(table)
