"""Batches in this process, and on a Ray cluster of this machine with one and more workers of one thread."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import dlf
from bench.machine import describe
from dlf import batch, zoo

RESULTS = Path(__file__).parent / "results" / "scale.json"


def main(
    prompts: Annotated[int, typer.Option(help="Prompts of each run.")] = 800,
    tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 32,
    workers: Annotated[int, typer.Option(help="Most workers.")] = 2,
    in_process: Annotated[bool, typer.Option(help="Whether to measure this process too.")] = True,
    output: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS,
) -> None:
    """Generated tokens a second, of the miniature family with one expert."""
    import ray

    found: dict[str, Any] = {"machine": describe({"dlf": dlf.__version__, "ray": ray.__version__}, 1)}
    found |= {"prompts": prompts, "tokens": tokens, "rows": []}
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="error")
    with tempfile.TemporaryDirectory() as folder:
        recipe, path = _inputs(Path(folder), prompts)
        defaults = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0}
        options: dict[str, Any] = {"defaults": defaults, "rows_per_part": 32, "progress": False}
        ways: dict[str, Any] = {
            f"in process, {threads} threads": (None, threads) for threads in (1, workers) if in_process
        }
        ways |= {f"Ray, {count} workers of 1 thread": (batch.Cluster(workers=count), 1) for count in (1, workers)}
        for number, (way, (place, threads)) in enumerate(ways.items()):
            report = batch.run(recipe, path, Path(folder, str(number)), cluster=place, threads=threads, **options)
            found["rows"].append(
                {
                    "way": way,
                    "tokens_per_second": report.tokens_per_second,
                    "seconds": report.seconds,
                    "processor_seconds": report.processor_seconds,
                }
            )
    ray.shutdown()
    _show(found)
    output.write_text(json.dumps(found, indent=1) + "\n")


def _inputs(folder: Path, count: int) -> tuple[Path, Path]:
    recipe, path = folder / "math.yaml", folder / "prompts.jsonl"
    experts = [{"name": "math", "model": str(zoo.path("math-expert"))}]
    content = {"large": str(zoo.path("large-base")), "base": str(zoo.path("small-base")), "experts": experts}
    recipe.write_text(json.dumps(content))
    problems = [one.prompt for one in zoo.problems("math")]
    rows = [{"id": i, "prompt": f"{i}. {problems[i % len(problems)]}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return recipe, path


def _show(found: dict[str, Any]) -> None:
    table = Table(title=f"{found['prompts']} prompts, {found['tokens']} tokens each")
    for column in ("", "tokens/s", "of one worker", "processor-seconds"):
        table.add_column(column)
    [one] = [row["tokens_per_second"] for row in found["rows"] if row["way"] == "Ray, 1 workers of 1 thread"]
    for row in found["rows"]:
        table.add_row(
            row["way"],
            f"{row['tokens_per_second']:.0f}",
            f"{row['tokens_per_second'] / one:.2f}",
            f"{row['processor_seconds']:.1f}",
        )
    Console().print(table)
