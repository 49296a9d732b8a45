"""Writes the weights of a checkpoint folder, in files of a bounded size."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dlf.checkpoints.checkpoint import PROGRESS_PARAMETERS
from dlf.checkpoints.hub import INDEX, SINGLE
from dlf.checkpoints.precision import SAFETENSORS_DTYPES, TensorLayout
from dlf.checkpoints.safetensors_file import write_safetensors
from dlf.checkpoints.source import Source
from dlf.errors import out_of_memory_is_memory_error
from dlf.support.terminal import printable

__all__ = ["copied_parts", "write_config", "write_weights"]

MAX_SHARD_BYTES = 5 * 10**9  # the default of transformers for years

Unit = Mapping[str, TensorLayout]  # tensors that are made together, and lie in one file


def write_weights(
    folder: Path,
    units: Mapping[str, Unit],
    tensors: Callable[[Iterable[str]], Iterator[tuple[str, torch.Tensor]]],
    task: str,
) -> None:
    """Write safetensors files, and an index if there are several.

    Parameters
    ----------
    folder
        Where to write.
    units
        Layouts of the tensors, by the name of each unit.
    tensors
        Yields the tensors of these units as `write_safetensors` takes them.
    task
        Text of the progress bar, which large models get.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full.
    MemoryError
        If memory runs out.
    """
    shards = _split(units)
    total = sum(layout.nbytes for unit in units.values() for layout in unit.values())
    hidden = total < 2 * PROGRESS_PARAMETERS or not sys.stderr.isatty()
    with tqdm(total=total, desc=printable(task), unit="B", unit_scale=True, disable=hidden) as progress:

        def counted(names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in tensors(names):
                yield name, tensor
                progress.update(tensor.nbytes)

        with out_of_memory_is_memory_error(task[0].lower() + task[1:]):
            for file_name, members in shards.items():
                layout = {name: one for unit in members for name, one in units[unit].items()}
                wide_first = dict(sorted(layout.items(), key=lambda item: -item[1].item_bytes))  # so all are aligned
                with open(folder / file_name, "wb") as file:
                    write_safetensors(file, wide_first, {"format": "pt"}, counted(members))
    if len(shards) > 1:
        weight_map = {name: file for file, members in shards.items() for unit in members for name in units[unit]}
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _split(units: Mapping[str, Unit]) -> dict[str, list[str]]:
    """Names of the units in each file of at most `MAX_SHARD_BYTES`."""
    parts: list[list[str]] = [[]]
    room = MAX_SHARD_BYTES
    for name, unit in units.items():
        nbytes = sum(layout.nbytes for layout in unit.values())
        if parts[-1] and nbytes > room:
            parts.append([])
            room = MAX_SHARD_BYTES
        parts[-1].append(name)
        room -= nbytes
    if len(parts) == 1:
        return {SINGLE: parts[0]}
    return {f"model-{i:05}-of-{len(parts):05}.safetensors": part for i, part in enumerate(parts, 1)}


def copied_parts(source: Source, dtype: torch.dtype | None) -> dict[str, Unit]:
    """Return layouts of the parts that a text needs not, which a copy of a checkpoint keeps; a warning if it cannot.

    Parameters
    ----------
    source
        The checkpoint.
    dtype
        Type that its floating-point numbers get; their own if not given.
    """
    other = [name for name, one in source.other_parts.items() if one.dtype not in SAFETENSORS_DTYPES.values()]
    if other:
        warnings.warn(
            f"{source.path} has {len(other)} tensors of other parts than text that are quantized, such as "
            f"{other[0]!r:.80}; these parts are not copied, so the result is a model for text alone",
            RuntimeWarning,
            stacklevel=4,
        )
        return {}
    named = None if dtype is None else SAFETENSORS_DTYPES[dtype]
    return {name: {name: TensorLayout(named or one.dtype, one.shape)} for name, one in source.other_parts.items()}


def write_config(
    values: dict[str, Any],
    folder: Path,
    dtype: torch.dtype | None,
    tied: bool,
    quantization: Mapping[str, Any] | None = None,
) -> None:
    """Write the ``config.json`` of weights that were made from those of another.

    Parameters
    ----------
    values
        That of the other; it is changed.
    folder
        Where to write.
    dtype
        Type of the weights; the other's if not given.
    tied
        Whether the embedding stands for the head.
    quantization
        Its ``quantization_config``; floats have none.
    """
    if values.get("tie_word_embeddings", False) is not tied:
        values["tie_word_embeddings"] = tied
    if dtype is not None:
        key = "dtype" if "dtype" in values else "torch_dtype"  # versions 5 and 4 of transformers
        values[key] = str(dtype).removeprefix("torch.")
    # The code that auto_map names is not copied, and dlf's architectures need none.
    for key in ("auto_map", "_name_or_path", "quantization_config"):
        values.pop(key, None)
    _write_json(
        folder / "config.json", values | ({} if quantization is None else {"quantization_config": quantization})
    )


def _write_json(path: Path, values: Mapping[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
