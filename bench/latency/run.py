"""``python -m bench latency``: time per token, first token, memory and load time, beside peers in the same run."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench.latency.engines import ENGINES, WIDTHS, Engine
from bench.latency.measure import Plan, WidthResult, measure_width, steps
from bench.latency.plot import plot
from bench.latency.rows import rows_of
from bench.latency.table import tables
from bench.machine import DEVICE_HELP, describe, file_name, where
from bench.shapes import SHAPES, write_checkpoint

NAMES = ", ".join(engine.name for engine in ENGINES)
RESULTS = Path(__file__).parents[1] / "results"


def main(
    large: Annotated[str, typer.Option(help=f"Shape of the large model: {', '.join(SHAPES)}.")] = "1.1B",
    small: Annotated[str, typer.Option(help="Shape of the expert and its base.")] = "143M",
    tokens: Annotated[int, typer.Option(help="Tokens to time, in interleaved rounds.", min=5)] = 60,
    prompt: Annotated[int, typer.Option(help="Length of the prompt before the timed tokens.", min=1)] = 64,
    first: Annotated[list[int], typer.Option(help="Prompt lengths for timing the first token.")] = [64, 512, 2048],  # noqa: B006
    repeats: Annotated[int, typer.Option(help="How often each first token is timed.", min=1)] = 3,
    threads: Annotated[int, typer.Option(help="Threads of every engine.", min=1)] = os.cpu_count() or 1,
    device: Annotated[str, typer.Option(help=f"{DEVICE_HELP} On a card only dlf and transformers run.")] = "cpu",
    weights: Annotated[list[str], typer.Option(help="Widths of the weights.")] = list(WIDTHS),  # noqa: B006
    only: Annotated[list[str], typer.Option(help=f"Engines to measure: {NAMES}.")] = [],  # noqa: B006
    skip: Annotated[list[str], typer.Option(help="Engines to leave out.")] = [],  # noqa: B006
    output: Annotated[Path, typer.Option(help="Folder for the figures as JSON and the plot.")] = RESULTS,
) -> None:
    """Measure the latency of dlf and its peers with random weights: a process per engine, in turns at each width."""
    _check("shape", [large, small], SHAPES)
    _check("width", weights, WIDTHS)
    _check("engine", [*only, *skip], [engine.name for engine in ENGINES])
    console = Console()
    place = where(device, threads)  # raises
    wanted = [engine for engine in ENGINES if engine.name not in skip and (not only or engine.name in only)]
    if device != "cpu":  # peers on the processor would not compare
        wanted = [engine for engine in wanted if engine.cuda]
    notes = [_how_to_install(engine) for engine in wanted if engine.missing()]
    engines = [engine for engine in wanted if not engine.missing()]
    results = []
    with tempfile.TemporaryDirectory(prefix="dlf-bench-") as folder, _progress(console) as progress:
        scratch = Path(folder)
        groups = {width: [engine for engine in engines if width in engine.widths] for width in weights}
        task = progress.add_task("making models", total=None)
        models = (("large", large), ("expert", small), ("base", small))
        folders = [write_checkpoint(scratch / name, shape, seed) for seed, (name, shape) in enumerate(models)]
        plan = Plan(folders, scratch, threads, tokens, prompt, first, repeats, device)
        progress.update(task, total=sum(steps(group, plan) for group in groups.values()))

        def report(what: str, done: int) -> None:
            progress.update(task, description=what, advance=done)

        for width, group in groups.items():
            results.append(measure_width(width, group, plan, report))
    title = f"{large} + 2 × {small}, batch 1, prompt {prompt}, {place}"
    versions = {name: found for engine in engines for name, found in engine.versions().items()}
    record = _record(results, title, describe(versions, threads, device), plan)
    notes += [note for result in results for note in result.notes]
    _show(console, record, notes)
    output.mkdir(parents=True, exist_ok=True)
    target = output / (file_name(f"latency-{large}-{small}", device) + ".json")
    target.write_text(json.dumps(record | {"notes": notes}, indent=1) + "\n")
    console.print(f"written to {target}")
    if record["rows"]:
        try:
            plot(record["rows"], title, target.with_suffix(".png"))
            console.print(f"drawn in {target.with_suffix('.png')}")
        except ImportError:
            console.print("no plot: pip install matplotlib")


def _check(what: str, given: Sequence[str], known: Any) -> None:
    for name in given:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is no {what}; choose from {', '.join(known)}")


def _progress(console: Console) -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True)


def _how_to_install(engine: Engine) -> str:
    return f"{engine.label}: not measured, since {', '.join(engine.missing())} is missing; pip install '.[bench]'"


def _record(results: Sequence[WidthResult], title: str, machine: dict[str, Any], plan: Plan) -> dict[str, Any]:
    bandwidths = {
        result.weights: {"median": result.bandwidth, "all": result.bandwidths} for result in results if result.engines
    }
    return {
        "title": title,
        "machine": machine,
        "tokens": plan.tokens,
        "prompt": plan.prompt,
        "first_token_repeats": plan.repeats,
        "bandwidth_bytes_per_s": bandwidths,
        "rows": [row for result in results for row in rows_of(result)],
    }


def _show(console: Console, record: dict[str, Any], notes: Sequence[str]) -> None:
    if record["rows"]:
        for table in tables(record["rows"], record["title"]):
            console.print(table)
        speeds = record["bandwidth_bytes_per_s"]
        listed = ", ".join(f"{one['median'] / 1e9:.1f} GB/s beside {width}" for width, one in speeds.items())
        console.print(f"bandwidth: {listed}; floor: ms to read the engine's weights once at that speed")
    for note in notes:
        console.print(f"[yellow]note:[/yellow] {note}", highlight=False)
