"""Writes a checkpoint of any kind as a folder of safetensors files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from dlf.checkpoints.checkpoint import check_finite
from dlf.checkpoints.packed import PackedMatrix
from dlf.checkpoints.precision import TORCH_DTYPES, Precision, TensorLayout
from dlf.checkpoints.published.compressed_tensors import config_of, layout_of, tensors_of
from dlf.checkpoints.quantized import quantize, targets
from dlf.checkpoints.source import Source, open_checkpoint
from dlf.checkpoints.write import copied_parts, write_config, write_weights
from dlf.errors import CheckpointError
from dlf.support.fields import parse_json
from dlf.support.new_folder import check_new, new_folder

__all__ = ["convert"]

TIED_HEAD = "the embedding as head"  # name of the unit, which no tensor has
FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
DTYPES = {name: dtype for dtype, name in FLOATS.items()}


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
    weights : {"fp32", "bf16", "fp16", "int8", "int4", "int4-g64"}, optional
        Type of the weights. Quantized linear layers are bit-identical to those that an engine with the same `weights`
        makes; they are written as compressed-tensors does, so that other programs can read them too.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        Type of what is not quantized. ``"auto"`` keeps that of each tensor, and gives tensors that the source has
        quantized the type that its configuration declares.

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
    config, quantization = source.config, precision.quantization
    chosen = None if precision.dtype == "auto" else TORCH_DTYPES[precision.dtype]
    declared = TORCH_DTYPES[config.dtype or "float32"]
    linears = {} if quantization is None else _linears(source)
    units: dict[str, Mapping[str, TensorLayout]] = {}
    for name, shape in config.tensors().items():
        dtype = declared if chosen is None and name in source.kinds else chosen
        units[name] = {name: TensorLayout(source.layout(name).dtype if dtype is None else FLOATS[dtype], shape)}
    for name, (module, (out, columns)) in linears.items():
        assert quantization is not None
        units[name] = layout_of(module, (out, columns), quantization.format)

    units |= copied_parts(source, chosen)

    def tensors(names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for name in names:
            tensor = source.read(config.embedding if name == TIED_HEAD else name)
            if name in linears and quantization is not None:
                check_finite(tensor, name, source.path)
                module, shape = linears[name]
                tiles, scale = quantize(tensor, quantization)
                yield from tensors_of(module, PackedMatrix.of_tiles(tiles, scale, quantization.format, shape)).items()
                continue
            [(_, layout)] = units[name].items()
            tensor = tensor.to(DTYPES[layout.dtype])
            check_finite(tensor, name, source.path_of(name))
            yield name, tensor

    files = source.side_files()
    values = parse_json(files.pop("config.json"), source.path / "config.json")
    tied = config.tie_word_embeddings and quantization is None
    form = None if quantization is None else config_of(quantization.format, sorted(source.other_parts))
    write_config(values, folder, chosen, tied, form)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    try:
        write_weights(folder, units, tensors, f"Converting {source.path.name}")
    finally:
        source.close()


def _linears(source: Source) -> dict[str, tuple[str, tuple[int, int]]]:
    """Module and shape ``(out, in)`` of each matrix to quantize, by the name of its tensor."""
    found = {}
    for name, part in targets(source.config):
        if part.transposed or len(part.stored) != 2 or not part.tensor.endswith(".weight"):
            raise CheckpointError(
                f"{source.path_of(part.tensor)} stores '{part.tensor}' otherwise than compressed-tensors can; convert "
                "it to floats, and quantize it when it is loaded (weights=)"
            )
        tied = part.tensor == source.config.embedding
        stored = TIED_HEAD if tied else part.tensor
        found[stored] = (name if tied else part.tensor).removesuffix(".weight"), (part.stored[0], part.stored[1])
    return found
