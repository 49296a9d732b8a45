"""Decoding on a machine that has other work: one thread and a team, beside busy processes and under limits."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import dlf
from bench.machine import describe
from dlf import zoo

RESULTS = Path(__file__).parent / "results" / "busy.json"
HOG = "while True: pass"
GROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu"))  # versions 2 and 1


def main(
    model: Annotated[str, typer.Argument(help="Folder or GGUF file of a model.")] = str(zoo.path("large-base")),
    rounds: Annotated[int, typer.Option(help="Turns of each team in each case.")] = 8,
    seconds: Annotated[float, typer.Option(help="Length of a turn.")] = 0.7,
    output: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS,
) -> None:
    """Tokens a second of one thread and of a team, alone, beside busy processes, on one core, and under a quota."""
    threads = torch.get_num_threads()
    found: dict[str, Any] = {"machine": describe({"dlf": dlf.__version__, "torch": torch.__version__}, threads)}
    found |= {"model": Path(model).name, "rounds": rounds}
    cases: dict[str, Callable[[], Any]] = {
        "alone": ExitStack,
        "1 busy process": lambda: _busy(1),
        "2 busy processes": lambda: _busy(2),
        "one core": _one_core,
        "quota of 1 core": lambda: _quota(1.0),
    }
    with ExitStack() as stack:
        engines = {size: stack.enter_context(dlf.Engine(model, threads=size, max_context=256)) for size in (1, threads)}
        found["tokens a second"] = {}
        for name, case in track(cases.items(), "Measuring"):
            with case() as possible:
                if possible is not False:
                    found["tokens a second"][name] = _turns(engines, rounds, seconds)
    _show(found, threads)
    output.write_text(json.dumps(found, indent=1) + "\n")


def _turns(engines: dict[int, dlf.Engine], rounds: int, seconds: float) -> dict[str, Any]:
    """Let the teams take turns in random order; medians over the turns, and the cores that each was given."""
    order = random.Random(0)
    rates: dict[int, list[float]] = {size: [] for size in engines}
    cores: dict[int, list[float]] = {size: [] for size in engines}
    for _ in range(rounds):
        for size in order.sample(list(engines), len(engines)):
            count, start, before = 0, time.perf_counter(), time.process_time()
            while time.perf_counter() - start < seconds:
                for _ in engines[size].stream([1, 2, 3], max_new_tokens=200, ignore_eos=True, temperature=0.0):
                    count += 1
                    if time.perf_counter() - start > seconds:
                        break
            wall = time.perf_counter() - start
            rates[size].append(count / wall)
            cores[size].append((time.process_time() - before) / wall)
    return {
        str(size): {
            "median": statistics.median(rates[size]),
            "turns": rates[size],
            "cores": statistics.mean(cores[size]),
        }
        for size in engines
    }


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """Keep processes busy that want a core each."""
    hogs = [subprocess.Popen([sys.executable, "-S", "-c", HOG]) for _ in range(count)]
    try:
        time.sleep(0.2)
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def _threads() -> list[int]:
    return [int(thread.name) for thread in Path("/proc/self/task").iterdir()]


@contextmanager
def _one_core() -> Iterator[None]:
    """Bind all threads of this process to one core."""
    before = os.sched_getaffinity(0)
    for thread in _threads():
        os.sched_setaffinity(thread, {min(before)})
    try:
        yield
    finally:
        for thread in _threads():
            os.sched_setaffinity(thread, before)


@contextmanager
def _quota(cores: float) -> Iterator[bool]:
    """Limit this process by the group of processes, as a container does; yields False where that is not allowed."""
    for root in GROUPS:
        own = root / "dlf-bench"
        if not (root / "cgroup.procs").exists():
            continue
        try:
            own.mkdir(exist_ok=True)
            if (own / "cpu.cfs_quota_us").exists():
                (own / "cpu.cfs_quota_us").write_text(str(int(cores * 100_000)))
            else:
                (own / "cpu.max").write_text(f"{int(cores * 100_000)} 100000")
            (own / "cgroup.procs").write_text(str(os.getpid()))
        except OSError:
            continue
        try:
            yield True
        finally:
            (root / "cgroup.procs").write_text(str(os.getpid()))
            own.rmdir()
        return
    yield False


def _show(found: dict[str, Any], threads: int) -> None:
    table = Table(title=f"{found['model']}: tokens a second")
    for column in ("", "1 thread", f"{threads} threads", "ratio", "cores", "of alone"):
        table.add_column(column)
    alone = found["tokens a second"]["alone"][str(threads)]["median"]
    for name, sizes in found["tokens a second"].items():
        one, team = sizes["1"], sizes[str(threads)]
        table.add_row(
            name,
            f"{one['median']:.0f}",
            f"{team['median']:.0f}",
            f"{team['median'] / one['median']:.2f}",
            f"{one['cores']:.2f}, {team['cores']:.2f}",
            f"{team['median'] / alone:.2f}",
        )
    Console().print(table)
