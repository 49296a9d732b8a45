"""Writes a checkpoint of any kind as a folder of safetensors files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from dlf.checkpoints.checkpoint import check_finite
from dlf.checkpoints.precision import TORCH_DTYPES, Precision, TensorLayout
from dlf.checkpoints.source import Source, open_checkpoint
from dlf.checkpoints.write import write_config, write_weights
from dlf.support.fields import parse_json
from dlf.support.new_folder import check_new, new_folder

__all__ = ["convert"]

FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def convert(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], weights: str | None = None, dtype: str = "auto"
) -> Path:
    """Write a checkpoint of any kind as a folder in Hugging Face format: weights, configuration and tokenizer.

    The folder appears when it is whole and on the disk. Memory holds one tensor at a time; large models get a progress
    bar.

    Parameters
    ----------
    source
        Folder, file or hub id.
    folder
        Path of the new folder; it must be empty or not exist.
    weights : {"fp32", "bf16", "fp16"}, optional
        Type of the weights.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        The same, in the words of `torch`; ``"auto"`` keeps that of each tensor, and gives quantized ones the type that
        the configuration declares.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FileExistsError
        If the folder is not empty.
    FileNotFoundError, CheckpointError
        If there is no such checkpoint, it cannot be read, or a value does not fit the type.
    ValueError
        If a type is unknown, or the two contradict each other.
    OSError
        If the folder cannot be written or the disk is full.
    """
    precision = Precision.of(dtype, weights)
    place = check_new(folder)
    opened = open_checkpoint(source)
    with new_folder(place) as temporary:
        _write(opened, temporary, precision)
    return place


def _write(source: Source, folder: Path, precision: Precision) -> None:
    config = source.config
    chosen = None if precision.dtype == "auto" else TORCH_DTYPES[precision.dtype]
    declared = TORCH_DTYPES[config.dtype or "float32"]

    def dtype_of(name: str) -> torch.dtype | None:
        return declared if chosen is None and name in source.kinds else chosen

    def tensors(names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for name in names:
            tensor, dtype = source.read(name), dtype_of(name)
            tensor = tensor if dtype is None else tensor.to(dtype)
            check_finite(tensor, name, source.path_of(name))
            yield name, tensor

    units = {}
    for name, shape in config.tensors().items():
        dtype = dtype_of(name)
        units[name] = {name: TensorLayout(source.layout(name).dtype if dtype is None else FLOATS[dtype], shape)}
    files = source.side_files()
    values = parse_json(files.pop("config.json"), source.path / "config.json")
    write_config(values, folder, chosen, config.tie_word_embeddings)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    try:
        write_weights(folder, units, tensors, f"Converting {source.path.name}")
    finally:
        source.close()
