"""Speed on a GGUF file, beside llama.cpp on the same file: tokens at batch 1, first tokens, loading."""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.latency.engines import ENGINES
from bench.latency.process import Process
from bench.machine import describe, milliseconds

RESULTS = Path(__file__).parent / "results" / "gguf.json"
NAMES = ("dlf-large", "llama.cpp")
SMALLEST_VOCABULARY = 32000
TURN = 8  # tokens
PAUSE_SECONDS = 0.05


@dataclass
class Measured:
    """What one engine did with one file."""

    load: float = 0.0
    memory: dict[str, int] = field(default_factory=dict)  # after everything
    tokens: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    @property
    def token(self) -> float:
        """Median seconds of a token."""
        return statistics.median(self.tokens)

    @property
    def prompt(self) -> float:
        """Median seconds until a first token."""
        return statistics.median(self.first)


def measure(file: Path, prompt: int, rounds: int, repeats: int, threads: int) -> dict[str, Measured]:
    """Load the file in a process for each engine, and let them take turns in random order."""
    chance = random.Random(0)
    found = {name: Measured() for name in NAMES}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        workers: dict[str, Process] = {}
        for name in NAMES:
            engine = next(one for one in ENGINES if one.name == name)
            worker = stack.enter_context(Process(engine.module, threads, Path(scratch) / f"{name}.log"))
            options = {"weights": "file", "threads": threads, "context": prompt + TURN * (rounds + 1) + 64}
            found[name].load = worker.ask("load", paths=[str(file)], options=options)["seconds"]
            workers[name] = worker

        def each(act: Callable[[Measured, Process], None]) -> None:
            for name in chance.sample(NAMES, len(NAMES)):
                time.sleep(PAUSE_SECONDS)
                act(found[name], workers[name])

        for _ in range(repeats + 1):  # the first warms up
            tokens = [chance.randrange(3, SMALLEST_VOCABULARY) for _ in range(prompt)]
            each(lambda one, worker, tokens=tokens: one.first.append(worker.ask("start", prompt=tokens)["seconds"]))  # type: ignore[misc]
        for name in NAMES:
            del found[name].first[0]
            workers[name].ask("start", prompt=tokens[:64])
            workers[name].ask("decode", count=TURN)
        for _ in range(rounds):
            each(lambda one, worker: one.tokens.extend(worker.ask("decode", count=TURN)["seconds"]))
        for name in NAMES:
            found[name].memory = workers[name].ask("memory")
    return found


def main(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="GGUF files.")],
    prompt: Annotated[int, typer.Option(help="Tokens of the prompts before a first token.", min=1)] = 512,
    rounds: Annotated[int, typer.Option(help=f"Turns of {TURN} tokens.", min=1)] = 24,
    repeats: Annotated[int, typer.Option(help="First tokens to time.", min=1)] = 6,
    threads: Annotated[int, typer.Option(help="Threads of both engines.", min=1)] = 2,
    output: Annotated[Path, typer.Option(help="Where to write the result as JSON.")] = RESULTS,
) -> None:
    """Measure dlf and llama.cpp on the same GGUF files, with all weights as the files have them."""
    table = Table(title=f"{threads} threads; ratios: llama.cpp's time over dlf's", title_justify="left")
    for column in ("file", "engine", "ms a token", "ratio", f"first token after {prompt}, ms", "ratio", "load, s"):
        table.add_column(column, justify="left" if column in ("file", "engine") else "right")
    results: list[dict[str, Any]] = []
    for file in track(files, "Files", transient=True):
        found = measure(file, prompt, rounds, repeats, threads)
        peer = found["llama.cpp"]
        for name, one in found.items():
            ratios = [f"{theirs / ours:.2f}" for theirs, ours in ((peer.token, one.token), (peer.prompt, one.prompt))]
            first, second = ("", "") if one is peer else ratios
            times = milliseconds(one.token), first, milliseconds(one.prompt), second
            table.add_row(*(("", name) if one is peer else (file.name, "dlf")), *times, f"{one.load:.2f}")
            results.append({"file": file.name, "engine": name, "token": one.token, "prompt": one.prompt, **asdict(one)})
    Console().print(table)
    versions = {package: found for one in ENGINES if one.name in NAMES for package, found in one.versions().items()}
    machine = describe(versions, threads)
    output.write_text(json.dumps({"machine": machine, "prompt": prompt, "results": results}, indent=1) + "\n")
