"""``dlf convert``: writes a checkpoint of any kind as a folder of safetensors files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from dlf.cli.signals import cleaning_up_when_terminated
from dlf.support.sizes import binary
from dlf.support.terminal import printable

__all__ = ["convert"]


def convert(
    source: Annotated[str, typer.Argument(help="Folder, file or hub id of a model.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write; it must be empty or not exist.")],
    weights: Annotated[
        str | None, typer.Option(help="fp32, bf16, fp16, int8, int4 or int4-g64; as in the file by default.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Type of everything that is not quantized.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a model of any kind as a folder of safetensors files, which loads faster."""
    import dlf

    begin = time.monotonic()
    with cleaning_up_when_terminated():
        place = dlf.convert(source, folder, weights, dtype)
    nbytes = sum(file.stat().st_size for file in place.iterdir())
    found = {
        "output": str(place),
        "source": source,
        "weights": weights,
        "dtype": dtype,
        "bytes": nbytes,
        "seconds": round(time.monotonic() - begin, 3),
    }
    if as_json:
        typer.echo(json.dumps(found))
    else:
        typer.echo(printable(f"{place}: {binary(nbytes)} in {found['seconds']:.1f} s"))
