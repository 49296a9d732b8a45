"""``dlf inspect``: shows what a checkpoint holds, from its configuration and the headers of its files."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlf.support.sizes import binary
from dlf.support.terminal import printable

if TYPE_CHECKING:
    from dlf.checkpoints.source import Source

__all__ = ["describe", "inspect"]


def inspect(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a model.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a checkpoint holds and the memory that running it takes."""
    found = describe(model)
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table(title=Text(printable(found["path"])), show_header=False, title_justify="left")
    for name, value in found.items():
        if name == "quantized" and value:
            for i, form in enumerate(value):
                table.add_row("" if i else name, Text(printable(_line(form))))
            continue
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        elif name.endswith("bytes") or "bytes_per" in name:
            value = f"{binary(value)} ({value:,})"
        elif isinstance(value, int) and not isinstance(value, bool):
            value = f"{value:,}"
        if name != "path":
            table.add_row(name.replace("_", " "), Text("none" if value is None else printable(str(value))))
    Console(highlight=False).print(table)


def _line(form: dict[str, Any]) -> str:
    sizes = f"{binary(form['file_bytes'])} in the file, {binary(form['bytes'])} in memory"
    return f"{form['tensors']} x {form['kind']}: {form['runs_as']}; {sizes}"


def describe(model: str) -> dict[str, Any]:
    """Report of `inspect`, by the names of its JSON; no weight is loaded."""
    from dlf.checkpoints import precision, quantized
    from dlf.checkpoints.source import open_source

    source = open_source(model)
    dtypes: list[str] = []
    forms: list[dict[str, Any]] = []
    try:
        c = source.config
        dtypes = sorted({layout.dtype for layout in source.layouts.values()})
        forms = _forms(source)
    except FileNotFoundError:  # without weights, the configuration still says something
        c = source.declared
    spec = c.spec
    width = 4 if precision.Precision().float_dtype(c.dtype) == "float32" else 2
    own = source.tokenizer() if source.has_tokenizer else None
    return {
        "path": str(source.path),
        "architecture": c.family.architecture,
        "parameters": sum(math.prod(shape) for shape in c.tensors().values()),
        "active_parameters": c.active_parameters,
        "dtypes": dtypes or [c.dtype or "unknown"],
        "quantized": forms or None,
        "layers": len(spec.layers),
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.feed_forward.size,
        "experts": f"{spec.experts.chosen} of {spec.experts.count}, each of {spec.experts.size}"
        if spec.experts.count
        else None,
        "attention_heads": spec.attention.heads,
        "key_value_heads": spec.attention.kv_heads,
        "head_dim": spec.attention.head_dim,
        "context": c.context_length,
        "sliding_windows": sorted({layer.window for layer in spec.layers if layer.window}) or None,
        "vocabulary": c.vocab_size,
        "tokenizer_size": own.vocab_size if own else None,
        "eos_token_ids": c.end_tokens(own.eos_token_id if own else None),
        "tied_embeddings": c.tie_word_embeddings,
        "disk_bytes": sum(os.path.getsize(file) for file in source.files),
        **{
            f"{name.replace('-', '_')}_bytes": quantized.weights_bytes(c, precision.Precision.stored(name))
            for name in precision.CPU_WEIGHTS
        },
        "kv_cache_bytes_per_token": c.kv_bytes_per_token(width),
    }


def _forms(source: Source) -> list[dict[str, Any]]:
    """Kinds of quantized tensors in the files, how each runs on the CPU, and the bytes of both."""
    from dlf.checkpoints import precision

    config, found = source.config, dict[tuple[str, str], dict[str, Any]]()
    width = 4 if precision.Precision().float_dtype(config.dtype) == "float32" else 2
    shapes = config.tensors()
    for name, kind in sorted(source.kinds.items()):
        form, shape = config.packed.get(name), shapes[name]
        tiles = [] if form is None else form.layout(name, (shape[0], shape[1])).values()
        table = form is None or (name == config.embedding and not config.tie_word_embeddings)
        one = found.setdefault((kind, "floats" if table else str(form)), {"tensors": 0, "file_bytes": 0, "bytes": 0})
        one["tensors"] += 1
        one["file_bytes"] += source.stored_bytes(name)
        one["bytes"] += math.prod(shape) * width if table else sum(layout.nbytes for layout in tiles)
    return [{"kind": kind, "runs_as": runs_as} | one for (kind, runs_as), one in sorted(found.items())]
