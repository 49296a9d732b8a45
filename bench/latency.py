"""Time per token of a fused step, beside transformers running the same three models in the same run."""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

import dlf
from bench.peers import transformers_loop
from bench.shapes import SHAPES, write_checkpoint


def bandwidth() -> float:
    """Bytes per second at which this machine reads memory: a sum over 512 MiB, the best of seven."""
    data = torch.ones(1 << 27)
    best = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - start)
    return data.nbytes / best


def time_tokens(tokens: Iterator[object], count: int) -> list[float]:
    """Seconds of each of the next `count` tokens."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        next(tokens)
        times.append(time.perf_counter() - start)
    return times


def main(
    large: Annotated[str, typer.Option(help=f"Shape of the large model: {', '.join(SHAPES)}.")] = "1.1B",
    small: Annotated[str, typer.Option(help="Shape of the expert and its base.")] = "143M",
    tokens: Annotated[int, typer.Option(help="Tokens that are timed, in interleaved rounds.")] = 30,
    prompt: Annotated[int, typer.Option(help="Length of the prompt in tokens.")] = 64,
    threads: Annotated[int | None, typer.Option(help="Threads of every engine.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write the result as JSON.")] = None,
) -> None:
    """Time per token of dlf and of transformers' loops, interleaved, with random bfloat16 weights."""
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    console = Console()
    with tempfile.TemporaryDirectory() as scratch, console.status("Making models"):
        folders = [
            write_checkpoint(Path(scratch) / name, shape, seed)
            for seed, (name, shape) in enumerate((("large", large), ("expert", small), ("base", small)))
        ]
        engine = dlf.Engine(folders[0], [dlf.Expert(folders[1], folders[2])], threads=threads, max_batch=1)
        alone = dlf.Engine(folders[0], threads=threads, max_batch=1)
        models = [transformers_loop.load(folder) for folder in folders]
        sizes = [(folder / "model.safetensors").stat().st_size for folder in folders]
        ids = [int(token) for token in torch.randint(3, 32000, (prompt,), generator=torch.Generator().manual_seed(0))]
        options = {"max_new_tokens": 4 * tokens + 8, "ignore_eos": True}
        runs: dict[str, Iterator[object]] = {
            "dlf, fused": engine.stream(ids, **options),
            "dlf, large alone": alone.stream(ids, **options),
            "transformers, paper's loop": transformers_loop.decode(models, ids),
            "transformers, alpha = 1": transformers_loop.decode(models, ids, alpha=1.0),
            "transformers, large alone": transformers_loop.decode(models[:1], ids),
        }
        first = {name: time_tokens(run, 1)[0] for name, run in runs.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            time_tokens(run, 2)  # warm up
        speeds = []
        for _ in range(max(1, tokens // 5)):
            speeds.append(bandwidth())
            for name, run in runs.items():
                times[name] += time_tokens(run, 5)
    embedding = 2 * 32000 * SHAPES[large]["hidden_size"]
    floor = (sum(sizes) - embedding - 2 * 2 * 32000 * SHAPES[small]["hidden_size"]) / statistics.median(speeds)
    reference = statistics.median(times["dlf, fused"])
    table = Table(title=f"{large} + 2 x {small}, bfloat16, {threads} threads; floor {1e3 * floor:.1f} ms")
    for column in ("", "ms per token", "10 % .. 90 %", "first token, ms", "relative to dlf fused"):
        table.add_column(column, justify="left" if not column else "right")
    rows = []
    for name, seconds in times.items():
        median = statistics.median(seconds)
        low, *_, high = statistics.quantiles(seconds, n=10)
        table.add_row(
            name,
            f"{1e3 * median:.1f}",
            f"{1e3 * low:.1f} .. {1e3 * high:.1f}",
            f"{1e3 * first[name]:.0f}",
            f"{median / reference:.2f}",
        )
        rows.append({"name": name, "median_s": median, "p10_s": low, "p90_s": high, "first_token_s": first[name]})
    console.print(table)
    if output is not None:
        processor = platform.processor() or platform.machine()
        machine = {"processor": processor, "torch": torch.__version__, "threads": threads}
        result = {"shape": [large, small], "floor_s": floor, "bandwidth": statistics.median(speeds), "rows": rows}
        output.write_text(json.dumps(result | {"machine": machine}, indent=2))
        console.print(f"written to {output}")
