"""``python -m bench rules``: time of a fused step by rule, and what a closed gate saves."""

from __future__ import annotations

import json
import os
import random
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import dlf
from bench.experts import words
from bench.machine import DEVICE_HELP, describe, file_name, milliseconds, where
from bench.shapes import SHAPES, write_checkpoint

RESULTS = Path(__file__).parent / "results"
PROMPT_TOKENS = 16


def half(step: dlf.StepLogits) -> torch.Tensor:
    """A function as rule: every weight is 0.5."""
    return torch.full_like(step.alpha, 0.5)


RULES: dict[str, dict[str, Any]] = {
    "select": {},
    "select, traced": {"trace": True},
    "static": {"combine": "static", "alpha": [0.5]},
    "jsd": {"combine": "jsd"},
    "certainty": {"combine": "certainty"},
    "large_weight": {"large_weight": 1.5},
    "plausibility": {"plausibility": 0.1},
    "mixture": {"mix": [0.3]},
    "function": {"rule": half},
}
CLOSED = (0.25, 0.5, 0.75, 0.95)  # shares of the tokens at which a gate is closed


@dataclass
class Cost:
    """Seconds a step of one rule, and its ratios to `select`, turn by turn."""

    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    closed: list[float] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)  # of small models, for each token

    def summary(self) -> dict[str, Any]:
        """Medians, and the range of the ratios without the outer tenths."""
        tenths = statistics.quantiles(self.ratios, n=10)
        return {
            "step_s": statistics.median(self.seconds),
            "ratio": statistics.median(self.ratios),
            "ratio_10_90": [tenths[0], tenths[-1]],
            "closed": statistics.mean(self.closed),
            "small_passes": statistics.mean(self.passes),
        }


def gates(engine: dlf.Engine, prompt: str, tokens: int) -> dict[str, dict[str, Any]]:
    """Gates that are closed at about these shares of the tokens, by the entropies that `engine` meets."""
    found: list[float] = []

    def note(step: dlf.StepLogits) -> None:
        log_p = step.large.double().log_softmax(-1)
        found.extend((-(log_p.exp() * log_p).sum(-1)).tolist())

    engine.generate(prompt, rule=note, max_new_tokens=tokens, ignore_eos=True, temperature=1.0, seed=1, speculate=False)
    return {
        f"gate, {share:.0%} closed": {"gate": "entropy", "gate_threshold": float(np.quantile(found, share))}
        for share in CLOSED
    }


def measure(engine: dlf.Engine, rules: dict[str, dict[str, Any]], rounds: int, tokens: int) -> dict[str, Cost]:
    """Time every rule in turns of random order, each beside a turn of `select`."""
    costs = {name: Cost() for name in rules}
    common = {"max_new_tokens": tokens + 1, "ignore_eos": True, "temperature": 1.0, "seed": 1, "speculate": False}
    prompt = words(random.Random(99), PROMPT_TOKENS)

    def step(name: str) -> tuple[float, float, float]:
        completion = engine.generate(prompt, **common, **rules[name])
        closed = (completion.alpha == 0).all(1).mean() if "gate" in name else 0.0
        passes = statistics.mean(step.small_passes for step in completion.timings.steps[1:])
        return float(completion.timings.token_times.mean()), float(closed), passes

    for turn in track(range(rounds + 1), "rules", transient=True):
        names = list(rules)
        random.Random(turn).shuffle(names)
        for name in names:
            around = [step("select")[0]]
            seconds, closed, passes = step(name)
            around.append(step("select")[0])
            if turn > 0:  # the first turn touches pages
                costs[name].seconds.append(seconds)
                costs[name].ratios.append(seconds / statistics.mean(around))
                costs[name].closed.append(closed)
                costs[name].passes.append(passes)
    return costs


def main(
    large: Annotated[str, typer.Option(help=f"Shape of the large model: {', '.join(SHAPES)}.")] = "360M",
    small: Annotated[str, typer.Option(help="Shape of the expert and its base.")] = "135M",
    rounds: Annotated[int, typer.Option(help="Turns of each rule.", min=2)] = 10,
    tokens: Annotated[int, typer.Option(help="Tokens in a turn.", min=2)] = 24,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads.", min=1)] = os.cpu_count() or 1,
    output: Annotated[Path, typer.Option(help="Folder for the figures as JSON.")] = RESULTS,
) -> None:
    """Measure the time of a fused step by rule, in one engine and in turns, and what a closed gate saves."""
    console = Console()
    place = where(device, threads)  # raises
    with tempfile.TemporaryDirectory(prefix="dlf-bench-") as scratch:
        with console.status("making models"):
            folders = [
                write_checkpoint(Path(scratch, name), shape, seed)
                for seed, (name, shape) in enumerate((("large", large), ("base", small), ("expert", small)))
            ]
        options = {"device": device, "threads": threads, "max_batch": 1, "max_context": 256}
        with dlf.Engine(folders[0], [dlf.Expert(folders[2], folders[1])], **options) as engine:
            rules = RULES | gates(engine, words(random.Random(99), PROMPT_TOKENS), tokens)
            costs = measure(engine, rules, rounds, tokens)
    title = f"{large} + 2 x {small}, bf16, batch 1, {place}"
    table = Table(title=title, title_justify="left")
    for column in ("rule", "ms a step", "of select", "10 to 90 %", "closed", "small passes"):
        table.add_column(column, no_wrap=True, justify="left" if column == "rule" else "right")
    found = {name: cost.summary() for name, cost in costs.items()}
    for name, cost in found.items():
        low, high = cost["ratio_10_90"]
        closed = f"{cost['closed']:.0%}" if "gate" in name else ""
        ratio, passes = f"{cost['ratio']:.3f}", f"{cost['small_passes']:.2f}"
        table.add_row(name, milliseconds(cost["step_s"]), ratio, f"{low:.3f} to {high:.3f}", closed, passes)
    console.print(table)
    versions = {"dlf": dlf.__version__, "torch": torch.__version__}
    record = {"title": title, "machine": describe(versions, threads, device), "rules": found}
    output.mkdir(parents=True, exist_ok=True)
    target = output / (file_name("rules", device) + ".json")
    target.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {target}")
