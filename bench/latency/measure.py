"""Measures one width of weights: its engines are loaded side by side and take turns.

Turns are short and in random order, so that other load of the machine affects all engines alike. Between turns the next
engine waits until the threads of the last one have stopped spinning.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.latency.engines import MEMORY, Engine
from bench.latency.process import EngineFailed, Process
from bench.shapes import VOCAB_SIZE

TURN = 5  # tokens
WARM_UP = 2
PAUSE_SECONDS = 0.03


@dataclass(frozen=True)
class Plan:
    """The measurements of every engine."""

    folders: Sequence[Path]  # large, expert, base
    scratch: Path
    threads: int
    tokens: int
    prompt: int
    first_token_prompts: Sequence[int]
    repeats: int
    device: str = "cpu"

    @property
    def rounds(self) -> int:
        return max(1, self.tokens // TURN)

    @property
    def context(self) -> int:
        """Positions of the longest sequence, and a few to spare."""
        return max(self.prompt + WARM_UP + TURN * self.rounds, *self.first_token_prompts) + 8


@dataclass
class Measured:
    """Measurements of one engine at one width, in seconds and bytes."""

    engine: Engine
    weights: str
    weight_bytes: int = 0
    prepare: float = 0.0
    load: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    first: dict[int, list[float]] = field(default_factory=dict)
    after_load: dict[str, int] = field(default_factory=dict)
    after_run: dict[str, int] = field(default_factory=dict)


@dataclass
class WidthResult:
    """All engines at one width; `bandwidths` has the best read of each round, in bytes per second."""

    weights: str
    engines: list[Measured] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def bandwidth(self) -> float:
        return statistics.median(self.bandwidths)


Action = Callable[[Measured, Process], None]


def steps(engines: Sequence[Engine], plan: Plan) -> int:
    """Number of steps that `measure_width` reports."""
    return len(engines) * (1 + plan.repeats * len(plan.first_token_prompts) + plan.rounds)


def measure_width(
    weights: str, engines: Sequence[Engine], plan: Plan, report: Callable[[str, int], None]
) -> WidthResult:
    """Measure engines at a width; if one fails, note it and continue with the others."""
    result = WidthResult(weights)
    running: dict[str, tuple[Measured, Process]] = {}
    chance = random.Random(0)
    with ExitStack() as stack:
        memory, reader = _load(MEMORY, weights, plan, stack)
        reader.ask("start", prompt=[])

        def each(what: str, act: Action, done: int = 0) -> None:
            """Let every engine act once, in random order."""
            for name in chance.sample(list(running), len(running)):
                measured, process = running[name]
                report(f"{weights}: {what}, {measured.engine.label}", 0)
                time.sleep(PAUSE_SECONDS)
                try:
                    act(measured, process)
                except EngineFailed as error:
                    result.notes.append(f"{measured.engine.label}, {weights}: {error}")
                    del running[name]
                report(f"{weights}: {what}, {measured.engine.label}", done)

        def turn(what: str, act: Action) -> None:
            """Measure the bandwidth, then every engine."""
            speeds = reader.ask("decode", count=3)["seconds"]
            result.bandwidths.append(memory.weight_bytes / min(speeds))
            each(what, act, 1)

        for engine in engines:
            report(f"{weights}: loading {engine.label}", 0)
            try:
                running[engine.name] = _load(engine, weights, plan, stack)
            except EngineFailed as error:
                result.notes.append(f"{engine.label}, {weights}: {error}")
            report(f"{weights}: loading {engine.label}", 1)

        for _ in range(plan.repeats):
            for length in plan.first_token_prompts:
                # Another prompt each time, since an engine may cache prompts.
                turn(f"first token after {length}", partial(_first_token, _random_prompt(length, chance)))
        each("warming up", partial(_warm_up, _random_prompt(plan.prompt, chance)))
        for _ in range(plan.rounds):
            turn("decoding", _decode)
        each("memory", _memory)
        result.engines = [measured for measured, _ in running.values()]
    return result


def _random_prompt(length: int, chance: random.Random) -> list[int]:
    return [chance.randrange(3, VOCAB_SIZE) for _ in range(length)]


def _first_token(prompt: list[int], measured: Measured, process: Process) -> None:
    measured.first.setdefault(len(prompt), []).append(process.ask("start", prompt=prompt)["seconds"])


def _warm_up(prompt: list[int], measured: Measured, process: Process) -> None:
    process.ask("start", prompt=prompt)
    process.ask("decode", count=WARM_UP)


def _decode(measured: Measured, process: Process) -> None:
    measured.times += process.ask("decode", count=TURN)["seconds"]


def _memory(measured: Measured, process: Process) -> None:
    measured.after_run = process.ask("memory")


def _load(engine: Engine, weights: str, plan: Plan, stack: ExitStack) -> tuple[Measured, Process]:
    """Convert in a process that ends, so that its memory is not counted, and load in one that stays."""
    measured = Measured(engine, weights)
    folders = [str(folder) for folder in (plan.folders if engine.fused else plan.folders[:1])]
    log = plan.scratch / f"{engine.name}-{weights}.log"
    with Process(engine.module, plan.threads, log) as process:
        prepared = process.ask("prepare", folders=folders, weights=weights, scratch=str(plan.scratch))
    measured.prepare = prepared["seconds"]
    process = stack.enter_context(Process(engine.module, plan.threads, log))
    options = {"weights": weights, "threads": plan.threads, "context": plan.context, **engine.options}
    if plan.device != "cpu":
        options["device"] = plan.device
    loaded = process.ask("load", paths=prepared["paths"], options=options)
    measured.load, measured.settings = loaded["seconds"], loaded["settings"]
    measured.weight_bytes = loaded["weight_bytes"]
    measured.after_load = process.ask("memory")
    return measured, process
