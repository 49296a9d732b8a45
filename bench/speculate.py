"""``python -m bench speculate``: speculative fused decoding beside plain decoding, with real acceptance at real cost.

It widens the miniature family's models into a 1.1B-shaped large one and 143M-shaped small ones with the same output
(`bench.inflate`), and decodes every problem by every way in turn, so that other load of the machine affects all alike.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

import dlf
from bench.family import corpus
from bench.inflate import inflate
from bench.latency.engines import ENGINES, REFERENCE
from bench.latency.measure import PAUSE_SECONDS
from bench.latency.process import EngineFailed, Process
from bench.machine import DEVICE_HELP, describe, milliseconds, where
from dlf import _C, zoo

RESULTS = Path(__file__).parent / "results"
LARGE, SMALL = "1.1B", "143M"
CONTEXT = 512
PEER_TOKENS = 5  # tokens of llama.cpp after each problem
SHUFFLED = "shuffled"  # words of several problems, whose continuation is hard to predict


@dataclass(frozen=True)
class Way:
    """One way to decode."""

    label: str
    speculate: Any
    fused: bool = True
    further: bool = False  # whether the base drafts for the large model alone


WAYS = {
    "plain": Way("fused, plain", False),
    "auto": Way("fused, speculative", "auto"),
    "large": Way("large alone, plain", False, fused=False),
    "large-base": Way("large alone, base drafts", "auto", fused=False, further=True),
}
PEER = "llama.cpp"
LABELS = {name: way.label for name, way in WAYS.items()} | {PEER: "llama.cpp, sum of 3"}


@dataclass
class Measured:
    """Measurements of one way on one task at one temperature."""

    seconds: list[float] = field(default_factory=list)  # of each completion, after its first token
    tokens: list[int] = field(default_factory=list)  # likewise
    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    steps: list[dlf.Step] = field(default_factory=list, repr=False)  # all but the first of each completion

    def add(self, completion: dlf.Completion) -> None:
        steps = completion.timings.token_times
        if len(steps) == 0:
            return
        self.seconds.append(float(steps.sum()))
        self.tokens.append(len(steps))
        self.steps += completion.timings.steps[1:]
        self.passes += completion.passes - 1
        self.drafted += completion.drafted
        self.accepted += len(completion.tokens) - completion.passes

    @property
    def per_token(self) -> float:
        """Seconds a token."""
        return sum(self.seconds) / sum(self.tokens)

    @property
    def spread(self) -> tuple[float, float]:
        """The 10th and 90th percentile of the completions, in seconds a token."""
        each = [seconds / tokens for seconds, tokens in zip(self.seconds, self.tokens, strict=True)]
        low, *_, high = statistics.quantiles(each, n=10, method="inclusive") if len(each) > 1 else [each[0], each[0]]
        return low, high

    def summary(self) -> dict[str, Any]:
        return {
            "ms": 1e3 * self.per_token,
            "ms_10_90": [1e3 * end for end in self.spread],
            "tokens": sum(self.tokens),
            "tokens_per_pass": sum(self.tokens) / self.passes if self.passes else None,
            "acceptance": self.accepted / self.drafted if self.drafted else None,
        }


class Decoders:
    """Two engines: one with the experts, which also decodes the large model alone, and one whose base drafts."""

    def __init__(self, folder: Path, tasks: Sequence[str], device: str, threads: int) -> None:
        shared: dict[str, Any] = {"max_batch": 1, "max_context": CONTEXT, "prefix_cache_bytes": 0}
        shared |= {"device": device, "threads": threads}
        large, base = folder / "large-base", folder / "small-base"
        experts = [dlf.Expert(folder / f"{task}-expert", base=base, name=task) for task in tasks]
        self.fused = dlf.Engine(large, experts, **shared)
        self.alone = dlf.Engine(large, drafter=base, **shared)

    def decode(self, way: Way, task: str, prompt: str, temperature: float, max_new_tokens: int) -> dlf.Completion:
        options = {"temperature": temperature, "seed": 0, "max_new_tokens": max_new_tokens, "speculate": way.speculate}
        if way.further:
            return self.alone.generate(prompt, **options)
        return self.fused.generate(prompt, experts=[task] if way.fused else [], **options)


def main(
    problems: Annotated[int, typer.Option(help="Problems of each task.", min=1)] = 6,
    temperatures: Annotated[list[float], typer.Option(help="Temperatures; 0 is greedy.")] = [0.0, 0.8, 1.5],  # noqa: B006
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of a completion.", min=2)] = 96,
    threads: Annotated[int, typer.Option(help="Threads of every engine.", min=1)] = os.cpu_count() or 1,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "cpu",
    family: Annotated[Path, typer.Option(help="Folder of the family's models.")] = zoo.FOLDER,
    peer: Annotated[bool, typer.Option(help="Whether llama.cpp decodes the three models too (only on a CPU).")] = True,
    output: Annotated[Path, typer.Option(help="Folder for the figures as JSON and the plot.")] = RESULTS,
) -> None:
    """Measure speculative fused decoding beside plain decoding, the large model alone, and llama.cpp."""
    console = Console()
    tasks = list(corpus.SEEN)
    found: dict[tuple[str, float, str], Measured] = {}
    different = 0
    chance = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="dlf-bench-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        names = [*(f"{task}-expert" for task in tasks), "small-base", "large-base"]
        for name in track(names, "making models", console=console):
            inflate(family / name, folder / name, LARGE if name == "large-base" else SMALL)
        llama = _llama(folder, tasks[0], threads, stack, console) if peer and device == "cpu" else None
        decoders = Decoders(folder, tasks, device, threads)
        for task in tasks:  # touches pages, and measures the times of passes
            for way in WAYS.values():
                decoders.decode(way, task, corpus.held_out(task, 1, "dev")[0].prompt, 0.0, 16)
        rounds = [
            (task, temperature, problem.prompt)
            for temperature in temperatures
            for task in [*tasks, SHUFFLED]
            for problem in _problems(task, tasks, problems)
        ]
        for task, temperature, prompt in track(rounds, "decoding", console=console):
            tokens = {}
            for name in chance.sample(list(WAYS), len(WAYS)):
                time.sleep(PAUSE_SECONDS)
                expert = tasks[0] if task == SHUFFLED else task
                completion = decoders.decode(WAYS[name], expert, prompt, temperature, max_new_tokens)
                tokens[name] = completion.tokens
                found.setdefault((task, temperature, name), Measured()).add(completion)
            different += tokens["plain"] != tokens["auto"]
            if llama is not None:
                time.sleep(PAUSE_SECONDS)
                seconds = llama(PEER_TOKENS)
                measured = found.setdefault((task, temperature, PEER), Measured())
                measured.seconds.append(sum(seconds))
                measured.tokens.append(len(seconds))
                measured.passes += len(seconds)
    rows = [
        {"task": task, "temperature": temperature, "way": name, **one.summary(), "all": asdict(one)}
        for (task, temperature, name), one in found.items()
    ]
    for row in rows:
        del row["all"]["steps"]
    versions = {
        package: version
        for engine in ENGINES
        if engine.name in (REFERENCE, PEER)
        for package, version in engine.versions().items()
    }
    record = {
        "title": f"{LARGE} + 2 x {SMALL}, bf16, batch 1, {where(device, threads)}, {problems} problems of each task",
        "machine": describe(versions, threads, device),
        "completions_that_differ": different,
        "claims": _claims(rows, tasks),
        "steps": [] if device == "cpu" else _steps(found),
        "rows": rows,
    }
    _show(console, record)
    output.mkdir(parents=True, exist_ok=True)
    target = output / "speculate.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {target}")
    try:
        _plot(rows, tasks, target.with_suffix(".png"), record["title"])
        console.print(f"drawn in {target.with_suffix('.png')}")
    except ImportError:
        console.print("no plot: pip install matplotlib")


def _steps(found: dict[tuple[str, float, str], Measured]) -> list[dict[str, Any]]:
    """Times and tokens of each kind of step of every way: by its drafter, its drafts, and whether it was one graph."""
    kinds: dict[tuple[str, str, int, bool], list[dlf.Step]] = {}
    for (_, _, way), measured in found.items():
        for step in measured.steps:
            drafter = "" if step.drafted == 0 else "look-up" if step.drafter == _C.PROMPT_LOOKUP else "lane"
            kinds.setdefault((way, drafter, step.drafted, step.graph), []).append(step)
    rows = []
    for (way, drafter, drafted, graph), steps in sorted(kinds.items()):
        seconds = sorted(step.seconds for step in steps)
        rows.append(
            {
                "way": way,
                "drafter": drafter,
                "drafted": drafted,
                "graph": graph,
                "steps": len(steps),
                "tokens_a_step": statistics.mean(step.tokens for step in steps),
                "median_ms": 1e3 * statistics.median(seconds),
                "longest_ms": 1e3 * seconds[-1],
                "sum_ms": 1e3 * sum(seconds),
            }
        )
    return rows


def _problems(task: str, tasks: Sequence[str], count: int) -> list[Any]:
    """The first held-out problems of a task, or shuffled words of several."""
    if task != SHUFFLED:
        return corpus.held_out(task, count, "dev")
    chance = random.Random(1)
    mixed = []
    for i in range(count):
        words = " ".join(corpus.held_out(one, count, "dev")[i].prompt for one in tasks).split()
        chance.shuffle(words)
        mixed.append(corpus.Problem(" ".join(words[:60]), "", "", "", ""))
    return mixed


def _llama(
    folder: Path, task: str, threads: int, stack: ExitStack, console: Console
) -> Callable[[int], list[float]] | None:
    """A function that decodes tokens with llama.cpp by all three models, and returns the seconds of each."""
    try:
        process = stack.enter_context(Process("bench.peers.llama_cpp", threads, folder / "llama.log"))
        names = ["large-base", f"{task}-expert", "small-base"]
        folders = [str(folder / name) for name in names]
        paths = process.ask("prepare", folders=folders, weights="bf16", scratch=str(folder))["paths"]
        process.ask("load", paths=paths, options={"weights": "bf16", "threads": threads, "context": CONTEXT})
    except EngineFailed as error:
        console.print(f"[yellow]note:[/yellow] llama.cpp: {error}; pip install '.[bench]'", highlight=False)
        return None

    def decode(count: int) -> list[float]:
        process.ask("start", prompt=list(range(10, 74)))
        process.ask("decode", count=2)
        seconds: list[float] = process.ask("decode", count=count)["seconds"]
        return seconds

    return decode


def _ms(rows: Sequence[dict[str, Any]], task: str, temperature: float, way: str) -> float | None:
    return next((r["ms"] for r in rows if (r["task"], r["temperature"], r["way"]) == (task, temperature, way)), None)


def _claims(rows: Sequence[dict[str, Any]], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """The figures that have targets: means over the tasks of ratios of one run."""

    def ratio(over: Sequence[str], temperature: float, way: str) -> float | None:
        pairs = [(_ms(rows, task, temperature, "auto"), _ms(rows, task, temperature, way)) for task in over]
        ratios = [a / b for a, b in pairs if a is not None and b is not None]
        return statistics.mean(ratios) if ratios else None

    return [
        {"claim": "speculative / plain fused, greedy", "target": 0.50, "found": ratio(tasks, 0.0, "plain")},
        {"claim": "speculative / the large model alone, greedy", "target": 0.65, "found": ratio(tasks, 0.0, "large")},
        {"claim": "speculative / llama.cpp, sum of three, greedy", "target": 0.60, "found": ratio(tasks, 0.0, PEER)},
        {"claim": "speculative / plain fused, temperature 1.5", "target": 1.05, "found": ratio(tasks, 1.5, "plain")},
        {
            "claim": "speculative / plain fused, shuffled words, temperature 1.5",
            "target": 1.05,
            "found": ratio([SHUFFLED], 1.5, "plain"),
        },
    ]


def _show(console: Console, record: dict[str, Any]) -> None:
    console.print(record["title"])
    for temperature in dict.fromkeys(row["temperature"] for row in record["rows"]):
        console.print(_table([row for row in record["rows"] if row["temperature"] == temperature], temperature))
    if record["steps"]:
        console.print(_table_of_steps(record["steps"]))
    for claim in record["claims"]:
        if claim["found"] is not None:
            mark = "[green]reached[/green]" if claim["found"] <= claim["target"] else "[yellow]not reached[/yellow]"
            figures = f"{claim['found']:.2f}, aim {claim['target']:.2f}"
            console.print(f"{claim['claim']}: {figures}, {mark}", highlight=False)
    console.print(f"completions that differ from plain decoding: {record['completions_that_differ']}")


def _table_of_steps(steps: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="steps by kind", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("decoding", "drafter"):
        table.add_column(heading, no_wrap=True)
    for heading in ("drafted", "graph", "steps", "tokens", "median ms", "longest", "sum"):
        table.add_column(heading, justify="right", no_wrap=True)
    for step in steps:
        figures = [f"{step[name]:.2f}" for name in ("tokens_a_step", "median_ms", "longest_ms", "sum_ms")]
        table.add_row(
            LABELS[step["way"]],
            step["drafter"],
            str(step["drafted"]),
            "yes" if step["graph"] else "no",
            str(step["steps"]),
            *figures,
        )
    return table


def _table(rows: Sequence[dict[str, Any]], temperature: float) -> Table:
    table = Table(
        title=f"temperature {temperature:g}: ms a token, ratio to plain, tokens a pass, share of right drafts",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("task", "decoding"):
        table.add_column(heading, no_wrap=True)
    for heading in ("ms", "10 .. 90 %", "ratio", "a pass", "right"):
        table.add_column(heading, justify="right", no_wrap=True)
    for task in dict.fromkeys(row["task"] for row in rows):
        plain = _ms(rows, task, temperature, "plain")
        for number, way in enumerate(LABELS):
            row = next((row for row in rows if row["task"] == task and row["way"] == way), None)
            if row is None:
                continue
            low, high = row["ms_10_90"]
            table.add_row(
                "" if number else task,
                LABELS[way],
                milliseconds(row["ms"] / 1e3),
                f"{milliseconds(low / 1e3)} .. {milliseconds(high / 1e3)}",
                f"{row['ms'] / plain:.2f}" if plain else "-",
                f"{row['tokens_per_pass']:.2f}",
                "-" if row["acceptance"] is None else f"{100 * row['acceptance']:.0f} %",
                style="bold" if way == "auto" else "",
            )
        table.add_section()
    return table


def _plot(rows: Sequence[dict[str, Any]], tasks: Sequence[str], target: Path, title: str) -> None:
    from matplotlib import use

    use("Agg")
    from matplotlib import pyplot

    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    ways = {"plain": "#8fbfe0", "auto": "#1b6ca8", "large": "#b8b8b8", "large-base": "#7f7f7f", PEER: "#d9c7a3"}
    groups = [*tasks, SHUFFLED]
    figure, axes = pyplot.subplots(
        1, len(temperatures), figsize=(4.2 * len(temperatures), 3.6), sharey=True, layout="constrained", squeeze=False
    )
    for axis, temperature in zip(axes[0], temperatures, strict=True):
        there = [way for way in ways if any(row["way"] == way for row in rows)]
        for i, way in enumerate(there):
            places = [group + (i - (len(there) - 1) / 2) * 0.16 for group in range(len(groups))]
            heights = [_ms(rows, task, temperature, way) or 0 for task in groups]
            axis.bar(places, heights, width=0.15, color=ways[way], label=LABELS[way])
        axis.set_xticks(range(len(groups)), groups, fontsize=8)
        axis.set_title(f"temperature {temperature:g}", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("ms a token")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.savefig(target, dpi=150)
    pyplot.close(figure)
