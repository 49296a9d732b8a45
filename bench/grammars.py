"""``python -m bench grammars``: the time of a token in answers that follow a schema."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import dlf
from bench.machine import DEVICE_HELP, describe, file_name, where
from dlf import zoo
from dlf.prompts import end_tokens
from tests.reference.grammar_hook import GrammarHook

RESULTS = Path(__file__).parent / "results"
TEXT = {"type": "string", "maxLength": 40}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": TEXT,
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": TEXT,
        "hobbies": {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 4},
        "married": {"type": "boolean"},
    },
    "required": ["name", "age", "city", "hobbies", "married"],
    "additionalProperties": False,
}
PROMPT = "Describe a person as a JSON object with name, age, city, hobbies and married.\n"
GRAMMAR = dlf.Grammar.json_schema(SCHEMA)
# How an answer is decoded: without a grammar, by a function that masks the logits, and by masks in the sampler.
WAYS: dict[str, dict[str, Any]] = {
    "free": {"speculate": False},
    "function": {"speculate": False},
    "mask": {"speculate": False, "grammar": GRAMMAR},
    "free, drafts": {"speculate": "auto"},
    "mask, drafts": {"speculate": "auto", "grammar": GRAMMAR},
}


def matched(engine: dlf.Engine, tokens: Sequence[int]) -> float:
    """Seconds that llguidance alone takes for a token of an answer."""
    from llguidance import LLMatcher

    matcher = LLMatcher(engine._ensemble.grammar_tokens.of(end_tokens(engine._ensemble, PROMPT)), GRAMMAR.compiled)
    words = np.zeros((engine.vocab_size + 31) // 32, np.int32)
    address = words.ctypes.data
    begin = time.perf_counter()
    for token in tokens:
        matcher.unsafe_compute_mask_ptr(address, words.nbytes)
        matcher.consume_token(token)
    return (time.perf_counter() - begin) / len(tokens)


def measure(engine: dlf.Engine, rounds: int, tokens: int) -> dict[str, dict[str, float]]:
    """Tokens a second of every way, by turns: medians over the answers of all turns but the first.

    Processor time counts too, prompts included: other work on the machine changes it less.
    """
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    passes: dict[str, list[float]] = {way: [] for way in WAYS}
    busy: dict[str, list[float]] = {way: [] for way in WAYS}
    matching: list[float] = []
    for turn in track(range(rounds + 1), description="turns", transient=True):
        for way, options in WAYS.items():
            if way == "function":
                ends = engine._ensemble.grammar_tokens.of(end_tokens(engine._ensemble, PROMPT))
                options = options | {"rule": GrammarHook(GRAMMAR, ends)}
            begin = time.process_time()
            answer = engine.generate(
                PROMPT, temperature=1.0, seed=turn, max_new_tokens=tokens, ignore_eos=True, **options
            )
            seconds = time.process_time() - begin
            if way == "mask":
                matching.append(matched(engine, answer.tokens))
            if turn > 0:  # the first turn touches pages
                speeds[way].append((len(answer.tokens) - 1) / float(answer.timings.token_times.sum()))
                busy[way].append(seconds / len(answer.tokens))
                passes[way].append(answer.passes / len(answer.tokens))
    found = {
        way: {
            "tokens_per_s": statistics.median(speeds[way]),
            "processor_s_per_token": statistics.median(busy[way]),
            "passes_per_token": statistics.mean(passes[way]),
        }
        for way in WAYS
    }
    return found | {"llguidance": {"s_per_token": statistics.median(matching)}}


def main(
    model: Annotated[
        str | None, typer.Option(help="A model instead of the miniature family, fused with nothing.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Answers of each way.", min=2)] = 20,
    tokens: Annotated[int, typer.Option(help="Tokens of an answer.", min=2)] = 60,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads.", min=1)] = os.cpu_count() or 1,
    output: Annotated[Path, typer.Option(help="Folder for the figures as JSON.")] = RESULTS,
) -> None:
    """Measure answers that follow a schema beside free ones, in one engine and in turns."""
    console = Console()
    title = f"{Path(model).stem if model else 'the miniature family, fused'}, batch 1, {where(device, threads)}"
    experts = [] if model else [dlf.Expert(zoo.path("math-expert"), zoo.path("small-base"))]
    options: dict[str, Any] = {"device": device, "threads": threads, "max_batch": 1, "max_context": 512}
    with dlf.Engine(model or zoo.path("large-base"), experts, **options) as engine:
        found = measure(engine, rounds, tokens)
    table = Table(title=title, title_justify="left")
    for column in ("way", "tokens a second", "processor, ms a token", "passes a token"):
        table.add_column(column, no_wrap=True, justify="left" if column == "way" else "right")
    for way in WAYS:
        speed, busy, passes = found[way].values()
        table.add_row(way, f"{speed:.1f}", f"{1e3 * busy:.2f}", f"{passes:.2f}")
    console.print(table)
    console.print(f"llguidance: {1e6 * found['llguidance']['s_per_token']:.0f} us a token")
    versions = {"dlf": dlf.__version__, "torch": torch.__version__}
    record = {"title": title, "machine": describe(versions, threads, device), "ways": found}
    output.mkdir(parents=True, exist_ok=True)
    target = output / (file_name("grammars-" + ("model" if model else "zoo"), device) + ".json")
    target.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {target}")
