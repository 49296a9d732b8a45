"""``dlf inspect``: what a checkpoint holds, read from its configuration and the headers of its files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlf.sizes import binary
from dlf.terminal import printable

__all__ = ["describe", "inspect"]

DTYPE_BYTES = {"F64": 8, "F32": 4, "float32": 4}  # any other has 2 bytes


def inspect(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a model.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a checkpoint holds and what running it takes."""
    found = describe(model)
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table(title=Text(printable(found["path"])), show_header=False, title_justify="left")
    for name, value in found.items():
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        elif name.endswith("bytes") or "bytes_per" in name:
            value = f"{binary(value)} ({value:,})"
        elif isinstance(value, int) and not isinstance(value, bool):
            value = f"{value:,}"
        if name != "path":
            table.add_row(name.replace("_", " "), Text("none" if value is None else printable(str(value))))
    Console(highlight=False).print(table)


def describe(model: str) -> dict[str, Any]:
    """What `inspect` reports, under the names that its JSON has; no weight is loaded."""
    from dlf import checkpoint, config, precision, quantized, tokenizer

    folder = checkpoint.resolve(model)
    c = config.read_config(folder)
    files = sorted(folder.glob("*.safetensors"))
    dtypes = sorted({dtype for file in files for dtype in _file_dtypes(file)}) or [c.dtype or "unknown"]
    width = max(DTYPE_BYTES.get(dtype, 2) for dtype in dtypes)
    has_tokenizer = (folder / "tokenizer.json").is_file()
    return {
        "path": str(folder),
        "architecture": c.architecture,
        "parameters": sum(math.prod(shape) for shape in checkpoint.expected_tensors(c).values()),
        "dtypes": dtypes,
        "layers": c.num_hidden_layers,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "attention_heads": c.num_attention_heads,
        "key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "context": c.max_position_embeddings,
        "sliding_windows": sorted({window for window in c.sliding_windows if window}) or None,
        "vocabulary": c.vocab_size,
        "tokenizer_size": tokenizer.Tokenizer(folder).vocab_size if has_tokenizer else None,
        "eos_token_ids": list(c.eos_token_ids),
        "tied_embeddings": c.tie_word_embeddings,
        "disk_bytes": sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
        **{
            f"{name.replace('-', '_')}_bytes": quantized.weights_bytes(c, precision.Precision.stored(name))
            for name in precision.CPU_WEIGHTS
        },
        "kv_cache_bytes_per_token": c.kv_bytes_per_token(width),
    }


def _file_dtypes(path: Path) -> set[str]:
    """Types of the tensors in a file, from its header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again") from error
