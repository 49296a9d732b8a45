"""Tokens a second of batches on a GGUF file, beside llama.cpp's batched decoding of the same file."""

from __future__ import annotations

import json
import logging
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import dlf
from bench.latency.engines import ENGINES
from bench.machine import describe
from bench.peers.llama_cpp import LlamaCpp

RESULTS = Path(__file__).parent / "results" / "batches.json"
PROMPT = [3 + 7 * i for i in range(32)]
PAUSE_SECONDS = 0.05  # lets the threads of the engine before go to sleep


def main(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="GGUF file.")],
    sizes: Annotated[list[int], typer.Option("--size", help="Sequences at once.", min=1)] = [1, 2, 4, 8, 16, 32],  # noqa: B006
    count: Annotated[int, typer.Option(help="Tokens of each sequence in a turn.", min=1)] = 16,
    rounds: Annotated[int, typer.Option(help="Turns of each engine with each size.", min=1)] = 3,
    threads: Annotated[int, typer.Option(help="Threads of both engines.", min=1)] = torch.get_num_threads(),
    output: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS,
) -> None:
    """Measure dlf and llama.cpp decoding 1 to 32 sequences at once, greedily, in turns."""
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)  # it prints every tensor
    most = max(sizes)
    context = len(PROMPT) + count + 1
    engine = dlf.Engine(file, threads=threads, max_batch=most, max_context=context)
    peer = LlamaCpp(file, threads, context * most, most)
    measures: dict[str, Callable[[int], float]] = {
        "dlf": lambda size: _decode(engine, size, count),
        "llama.cpp": lambda size: peer.decode_batch(PROMPT, size, count),
    }
    order = random.Random(0)
    rates: dict[int, dict[str, list[float]]] = {size: {name: [] for name in measures} for size in sizes}
    for turn in track(range(rounds + 1), "Rounds", transient=True):
        for size in sizes:
            for name in order.sample(list(measures), len(measures)):
                time.sleep(PAUSE_SECONDS)
                seconds = measures[name](size)
                if turn > 0:  # the first warms up
                    rates[size][name].append(size * count / seconds)
    engine.close()
    _show(file, rates)
    versions = {name: found for one in ENGINES if one.name in measures for name, found in one.versions().items()}
    result = {"machine": describe(versions, threads), "file": file.name, "tokens a second": rates}
    output.write_text(json.dumps(result, indent=1) + "\n")


def _decode(engine: dlf.Engine, size: int, count: int) -> float:
    """Seconds of `count` tokens of each sequence after its first one."""
    found = engine.generate([PROMPT] * size, max_new_tokens=count + 1, ignore_eos=True, temperature=0, speculate=False)
    return max(float(one.timings.token_times.sum()) for one in found)


def _show(file: Path, rates: dict[int, dict[str, list[float]]]) -> None:
    table = Table(title=f"{file.name}: tokens a second", title_justify="left")
    for column in ("sequences", "dlf", "llama.cpp", "ratio"):
        table.add_column(column, justify="right")
    for size, both in rates.items():
        ours, theirs = (statistics.median(both[name]) for name in ("dlf", "llama.cpp"))
        table.add_row(str(size), f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.2f}")
    Console().print(table)
