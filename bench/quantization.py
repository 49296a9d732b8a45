"""The quality of quantized weights: the miniature family in every type of weights, beside float32."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.family import corpus
from bench.family.problem import Problem
from bench.reading import Reader
from dlf import zoo
from dlf.checkpoints.precision import CPU_WEIGHTS
from dlf.cli.demo import is_correct, systems
from dlf.model import load_model

REFERENCE = "fp32"
OTHER_SEED = 1_000_003  # seed of documents that no model has read
RESULTS = Path(__file__).parent / "results" / "quantization.json"


def texts(count: int) -> dict[str, list[tuple[str, str]]]:
    """Prompts and continuations for each model: none and a document, or a held-out problem and its worked answer."""
    documents = [("", document) for document in itertools.islice(corpus.pretraining(OTHER_SEED), count)]
    found = {"large-base": documents, "small-base": documents}
    for task in corpus.SEEN:
        found[f"{task}-expert"] = [(problem.prompt, problem.completion) for problem in corpus.held_out(task, count)]
    return found


def perplexity(name: str, weights: str, read: list[tuple[str, str]], threads: int) -> float:
    """exp of the mean loss per token of the continuations, each read alone."""
    reader = Reader(zoo.path(name), threads, weights)
    loss, count = 0.0, 0
    for prompt, continuation in read:
        tokens, logits = reader.continued(prompt, continuation)
        loss += float(torch.nn.functional.cross_entropy(logits.double(), torch.tensor(tokens), reduction="sum"))
        count += len(tokens)
    return math.exp(loss / count)


def accuracies(task: str, problems: Sequence[Problem], **options: Any) -> dict[str, float]:
    """Share of right answers of each system of `dlf demo`, counted as it counts them."""
    found = {}
    for system in systems(task, zoo.path, **options):
        with system.open() as engine:
            completions = engine.generate([problem.prompt for problem in problems], max_new_tokens=128, progress=False)
        right = [is_correct(done.text, problem.answer) for done, problem in zip(completions, problems, strict=True)]
        found[system.title] = sum(right) / len(right)
    return found


def main(
    problems: Annotated[int, typer.Option(help="Documents to score, and the most problems of each task.")] = 200,
    threads: Annotated[int | None, typer.Option(help="Threads of every engine.")] = None,
    output: Annotated[Path, typer.Option(help="Where to write the result as JSON.")] = RESULTS,
) -> None:
    """Measure perplexity and accuracy of the miniature family in every type of weights."""
    threads = threads or torch.get_num_threads()
    read = texts(problems)
    sizes = {
        name: {weights: load_model(zoo.path(name), weights=weights).weights.nbytes for weights in CPU_WEIGHTS}
        for name in read
    }
    found = {
        name: {weights: perplexity(name, weights, read[name], threads) for weights in CPU_WEIGHTS}
        for name in track(list(read), "Perplexity", transient=True)
    }
    held_out = {task: corpus.held_out(task, problems) for task in zoo.tasks()}  # a task may have fewer
    counts = {task: len(of_task) for task, of_task in held_out.items()}
    right: dict[str, dict[str, float]] = {}
    for task, weights in track(list(itertools.product(held_out, CPU_WEIGHTS)), "Accuracy  ", transient=True):
        for way, share in accuracies(task, held_out[task], weights=weights, threads=threads).items():
            right.setdefault(f"{task}, {way}", {})[weights] = share
    console = Console()
    console.print(_table("bytes of weights", sizes, "{:,.0f}", "{:+.0%}", relative=True))
    console.print(_table("perplexity", found, "{:.4f}", "{:+.2%}", relative=True))
    console.print(_table(f"accuracy on held-out problems: {counts}", right, "{:.1%}", "{:+.1%}", relative=False))
    result = {"problems": counts, "documents": problems, "bytes": sizes, "perplexity": found, "accuracy": right}
    output.write_text(json.dumps(result | {"torch": torch.__version__}, indent=2) + "\n")
    console.print(f"written to {output}")


def _table(title: str, rows: dict[str, dict[str, Any]], value: str, change: str, relative: bool) -> Table:
    """A table of the numbers, with their difference to the reference."""
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for weights in CPU_WEIGHTS:
        table.add_column(weights, justify="right")
    for name, row in rows.items():
        cells = []
        for weights, number in row.items():
            difference = (number - row[REFERENCE]) / (row[REFERENCE] if relative else 1)
            cells.append(value.format(number) + (f" {change.format(difference)}" if weights != REFERENCE else ""))
        table.add_row(name, *cells)
    return table
