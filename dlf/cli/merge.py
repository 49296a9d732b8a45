"""``dlf merge``: merges fine-tuned models of one base into a folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from dlf.cli.inspect import describe
from dlf.cli.signals import cleaning_up_when_terminated
from dlf.support.sizes import binary
from dlf.support.terminal import printable

__all__ = ["merge"]


def merge(
    base: Annotated[str, typer.Argument(help="Folder or hub id of the model that the experts were fine-tuned from.")],
    expert: Annotated[list[str], typer.Option(help="Fine-tuned model and its weight, PATH:0.4; may be repeated.")],
    output: Annotated[Path, typer.Option(help="Folder to write; it must be empty or not exist.")],
    method: Annotated[
        str, typer.Option(help="task_arithmetic, ties, dare_linear, dare_ties, linear or slerp.")
    ] = "task_arithmetic",
    density: Annotated[
        list[float] | None,
        typer.Option(help="Part of each task vector that ties and dare_* keep: one for all, or one for each expert."),
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option("--normalize/--no-normalize", help="Divide by the sum of the weights; on for linear and ties."),
    ] = None,
    scale: Annotated[float | None, typer.Option("--lambda", help="Multiplies the merged task vector.")] = None,
    seed: Annotated[int | None, typer.Option(help="For dare_*: the same seed drops the same values.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the base's by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Merge fine-tuned models of one base into a new model folder.

    A negative weight takes away what a model has learned: --expert PATH:-0.2
    """
    weights = _weights(expert)
    densities: float | dict[str, float] | None = None
    if density:
        if len(density) not in (1, len(weights)):
            raise ValueError(f"{len(weights)} --expert and {len(density)} --density: give one for all or one for each")
        densities = density[0] if len(density) == 1 else dict(zip(weights, density, strict=True))

    import dlf

    begin = time.monotonic()
    merged = dlf.TaskArithmetic(base, weights, method, densities, normalize, scale, seed, dtype)
    with cleaning_up_when_terminated():
        folder = merged.save(output)
    recipe = merged.recipe
    found = {
        "output": str(folder),
        "base": base,
        "experts": weights,
        "method": method,
        "density": dict(zip(weights, recipe.densities, strict=True)),
        "normalize": recipe.normalize,
        "lambda": recipe.scale,
        "seed": recipe.seed,
        "parameters": describe(str(folder))["parameters"],
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "seconds": round(time.monotonic() - begin, 3),
    }
    if as_json:
        typer.echo(json.dumps(found))
    else:
        size, seconds = binary(found["bytes"]), found["seconds"]
        typer.echo(printable(f"{folder}: {size}, {method} of {', '.join(weights)} in {seconds:.1f} s"))


def _weights(experts: list[str]) -> dict[str, float]:
    """Split each PATH:WEIGHT at its last colon."""
    found: dict[str, float] = {}
    for one in experts:
        path, _, weight = one.rpartition(":")
        try:
            value = float(weight)
        except ValueError:
            path = ""
        if not path:
            raise ValueError(f"--expert {one!r} has no weight: write PATH:WEIGHT, for example {one}:0.4")
        if path in found:
            raise ValueError(f"--expert {path!r} is given twice; add its weights up")
        found[path] = value
    return found
