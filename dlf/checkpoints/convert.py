"""Writes a checkpoint of any kind as a folder of safetensors files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from dlf.checkpoints.checkpoint import check_finite
from dlf.checkpoints.config import ModelConfig
from dlf.checkpoints.packed import PackedMatrix
from dlf.checkpoints.precision import TILE_OUTPUTS, TORCH_DTYPES, Precision, Quantization, TensorLayout
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
CHUNK_BYTES = 4 << 20  # written at once


def convert(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], weights: str | None = None, dtype: str = "auto"
) -> Path:
    """Write a checkpoint of any kind as a folder in Hugging Face format: weights, configuration and tokenizer.

    The folder appears when it is whole and on the disk. Memory holds one tensor at a time, and of one that is computed
    mostly a few rows; large models get a progress bar.

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
    config, quantization = source.config.of_folder, precision.quantization
    chosen = None if precision.dtype == "auto" else TORCH_DTYPES[precision.dtype]
    declared = TORCH_DTYPES[config.dtype or "float32"]
    joined = _joined_slots(source, config)
    linears = {} if quantization is None else _linears(source, config)
    units: dict[str, Mapping[str, TensorLayout]] = {}
    for name, shape in config.tensors().items():
        own = source.config.parts[joined[name][0]].tensor if name in joined else name
        dtype = declared if chosen is None and own in source.kinds else chosen
        units[name] = {name: TensorLayout(source.layout(own).dtype if dtype is None else FLOATS[dtype], shape)}
    for name, (module, (out, columns)) in linears.items():
        assert quantization is not None
        units[name] = layout_of(module, (out, columns), quantization.format)

    units |= copied_parts(source, chosen)

    def tensors(names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for name in names:
            if name in linears and quantization is not None:
                module, shape = linears[name]
                rows = source.rows(config.embedding if name == TIED_HEAD else name)
                yield from _quantized(_stretches(rows), module, shape, quantization, source.path)
                continue
            [(_, layout)] = units[name].items()
            dtype = DTYPES[layout.dtype]
            whole = [_join(source, config, joined[name])] if name in joined else source.rows(name, dtype=dtype)
            for one in _stretches(whole):
                values = one.to(dtype)
                check_finite(values, name, source.path)
                yield name, values

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


def _joined_slots(source: Source, config: ModelConfig) -> dict[str, list[str]]:
    """Slots that each tensor of the folder holds, where the source has it in several."""
    found: dict[str, list[str]] = {}
    own = source.config.tensors()
    for slot, part in config.parts.items():
        if part.tensor not in own:
            found.setdefault(part.tensor, []).append(slot)
    return found


def _join(source: Source, config: ModelConfig, slots: list[str]) -> torch.Tensor:
    """Return the tensor of the folder that holds these slots."""
    found: torch.Tensor | None = None
    for slot in slots:
        own, part = source.config.parts[slot], config.parts[slot]
        values = own.take(source.read(own.tensor))
        found = torch.empty(part.stored, dtype=values.dtype) if found is None else found
        part.take(found).copy_(values)  # a view, as such parts are neighbouring rows
    assert found is not None
    return found


def _stretches(rows: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Cut what comes along its first axis into a few whole tiles of rows at once."""
    for tensor in rows:
        if tensor.nbytes <= CHUNK_BYTES:
            yield tensor
            continue
        step = max(CHUNK_BYTES * len(tensor) // tensor.nbytes // TILE_OUTPUTS, 1) * TILE_OUTPUTS
        for first in range(0, len(tensor), step):
            yield tensor[first : first + step]


def _quantized(
    rows: Iterator[torch.Tensor], module: str, shape: tuple[int, int], quantization: Quantization, path: Path
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the stored tensors of a layer as its rows come; its shape comes last."""
    form, columns = quantization.format, shape[1]
    for one in rows:
        check_finite(one, f"{module}.weight", path)
        tiles, scale = quantize(one, quantization)
        found = tensors_of(module, PackedMatrix.of_tiles(tiles, scale, form, (len(one), columns)))
        found.pop(f"{module}.weight_shape")
        yield from found.items()
    yield f"{module}.weight_shape", torch.tensor(shape)


def _linears(source: Source, config: ModelConfig) -> dict[str, tuple[str, tuple[int, int]]]:
    """Module and shape ``(out, in)`` of each matrix to quantize, by the name of its tensor."""
    found = {}
    for name, part in targets(config):
        if part.transposed or len(part.stored) != 2 or not part.tensor.endswith(".weight"):
            raise CheckpointError(
                f"{source.path} stores '{part.tensor}' otherwise than compressed-tensors can; convert "
                "it to floats, and quantize it when it is loaded (weights=)"
            )
        tied = part.tensor == config.embedding
        stored = TIED_HEAD if tied else part.tensor
        found[stored] = (name if tied else part.tensor).removesuffix(".weight"), (part.stored[0], part.stored[1])
    return found
