"""Loads a checkpoint with its linear layers quantized, from the cache if that has them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from dlf import _C
from dlf.checkpoints.checkpoint import check_finite, load_tensors, read_tensors
from dlf.checkpoints.config import ModelConfig
from dlf.checkpoints.huge_pages import Place, leave, placement
from dlf.checkpoints.packed import PackedMatrix
from dlf.checkpoints.precision import TILE_PARTS, MatrixFormat, Precision, Quantization, tile_layouts
from dlf.checkpoints.source import Source
from dlf.checkpoints.weight_cache import CachedWeights, cache_folder
from dlf.errors import CheckpointError
from dlf.families.parts import Part

__all__ = [
    "always_read",
    "formats_of",
    "linear_shapes",
    "load_packed",
    "load_quantized",
    "quantize",
    "stored_linears",
    "targets",
    "weights_bytes",
]

FLOATS = ("embedding", "positions", "router")  # slots of matrices that are small, or of which a token reads one row


def targets(config: ModelConfig) -> Iterator[tuple[str, Part]]:
    """Yield the name and the part of each linear layer; a tied embedding is the part of the head."""
    for slot, part in config.parts.items():
        if len(part.shape) == 2 and not slot.endswith(FLOATS):
            yield config.head if slot == "head" else part.name, part


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Name and shape ``[out, in]`` of every linear layer's weight; a tied embedding counts as the head."""
    return {name: (part.shape[0], part.shape[1]) for name, part in targets(config)}


def stored_linears(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """`linear_shapes`, with a tied head under its name in the file."""
    shapes = linear_shapes(config)
    if config.tie_word_embeddings:
        shapes[config.embedding] = shapes.pop(config.head)
    return shapes


def always_read(config: ModelConfig, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes of the tensors that every step reads: not those of experts, which stay where they are."""
    experts = [part.name for slot, part in config.parts.items() if ".experts." in slot]
    idle = {name + suffix for name in experts for suffix in TILE_PARTS}
    return {name: size for name, size in sizes.items() if name not in idle}


def formats_of(config: ModelConfig, precision: Precision) -> dict[str, MatrixFormat]:
    """Format of each matrix that will be in tiles, by name; quantizing a tied embedding makes the head."""
    if precision.quantization is not None:
        return dict.fromkeys(linear_shapes(config), precision.quantization.format) | _embedding_format(config)
    if not precision.packed:
        return {}
    return {part.name: config.packed[part.tensor] for part in _matrices(config) if part.tensor in config.packed}


def _embedding_format(config: ModelConfig) -> dict[str, MatrixFormat]:
    """Format of the embedding, by its name, if the files have it as integers and scales."""
    return {name: form for name, form in config.packed.items() if name == config.embedding}


def _matrices(config: ModelConfig) -> list[Part]:
    """Return the embedding and the linear layers; a tied embedding is one of them."""
    parts = [part for slot, part in config.parts.items() if slot == "embedding"] + [part for _, part in targets(config)]
    return list({part.name: part for part in parts}.values())


def weights_bytes(config: ModelConfig, precision: Precision, cuda: bool = False) -> int:
    """Bytes that a model's weights take."""
    shapes = {part.name: part.shape for part in config.parts.values()}
    matrices = linear_shapes(config) | {part.name: (part.shape[0], part.shape[1]) for part in _matrices(config)}
    width = 4 if precision.float_dtype(config.dtype, cuda) == "float32" else 2
    formats = formats_of(config, precision)
    floats = sum(math.prod(shape) for name, shape in shapes.items() if name not in formats)
    return width * floats + sum(one.nbytes for one in tile_layouts(formats, matrices).values())


def load_packed(
    source: Source, dtype: torch.dtype, formats: Mapping[str, MatrixFormat], huge_pages: bool = True
) -> dict[str, torch.Tensor]:
    """Read a checkpoint's tensors, those of `formats` with the file's own integers and scales, as tiles.

    They are laid out one by one, which takes a moment and keeps every number; so no file in the cache holds them. Other
    linear layers, and everything else, become `dtype`.

    Raises
    ------
    FileNotFoundError, CheckpointError
        As `load_tensors` does, and if an integer or scale is out of its range.
    """
    config = source.config
    matrices = {part.name: (part.shape[0], part.shape[1]) for part in _matrices(config)}
    sizes = {name: one.nbytes for name, one in tile_layouts(formats, matrices).items()}
    sizes |= {name: math.prod(shape) * dtype.itemsize for name, shape in matrices.items() if name not in formats}
    by_row = set() if config.tie_word_embeddings else {config.embedding}
    idle = {name + suffix for name in by_row for suffix in TILE_PARTS}
    read = {name: size for name, size in always_read(config, sizes).items() if name not in idle}
    place = placement(read) if huge_pages else leave
    floats = {part.name for part in config.parts.values()} - formats.keys()
    tensors = load_tensors(source, dtype, floats, place, by_row) | _keep_packed(source, formats, place)
    source.close()
    return tensors


def _keep_packed(source: Source, formats: Mapping[str, MatrixFormat], place: Place) -> dict[str, torch.Tensor]:
    """Return the tiles of matrices that the files have as integers and scales."""
    tensors: dict[str, torch.Tensor] = {}
    members: dict[str, list[Part]] = {}  # by stored tensor
    for part in _matrices(source.config):
        if part.name in formats:
            members.setdefault(part.tensor, []).append(part)
    for parts in members.values():
        matrices = _checked(source, parts[0])
        if len(parts) == 1 and parts[0].whole:
            tensors |= _tiles(matrices, parts[0], formats, place)
            continue
        whole = PackedMatrix.join(list(matrices))
        for part in parts:
            tensors |= _tiles(iter([whole.select(part.rows)]), part, formats, place)
        del whole
    return tensors


def _checked(source: Source, part: Part) -> Iterator[PackedMatrix]:
    """Yield the matrix that a part is of, if it has the format and the shape that the configuration says."""
    name, rows = part.tensor, 0
    out, columns = reversed(part.stored) if part.transposed else part.stored
    for matrix in source.packed(name):
        rows += matrix.shape[0]
        if matrix.format != source.config.packed[name] or matrix.shape[1] != columns or rows > out:
            break
        yield matrix
    else:
        if rows == out:
            return
    raise CheckpointError(
        f"{source.path_of(name)}: tensor '{name}' has other integers and scales than its header says; fetch the "
        "checkpoint again, or load it as floats (weights='bf16')"
    )


def load_quantized(
    source: Source, dtype: torch.dtype, quantization: Quantization, huge_pages: bool = True
) -> dict[str, torch.Tensor]:
    """Read a checkpoint's tensors, those of linear layers as tiles and scales.

    The file's own values are quantized, whatever `dtype` is. The tiles come from the cache, and go to huge pages if the
    model is large and `huge_pages` are wanted. If the cache cannot be written, which is a warning, or is switched off,
    they are made anew.

    Returns
    -------
    dict
        Tensors for `ModelConfig.by_slot`; the norms and biases are `dtype`, and so is the embedding unless the files
        have it as integers and scales, which stay.

    Raises
    ------
    FileNotFoundError, CheckpointError
        As `load_tensors` does.
    """
    config = source.config
    linears = linear_shapes(config)
    layout = quantization.layout(linears)
    place = placement(always_read(config, {n: one.nbytes for n, one in layout.items()})) if huge_pages else leave
    kept = _embedding_format(config)
    others = {part.name for part in config.parts.values()} - linears.keys() - kept.keys()
    tensors = load_tensors(source, dtype, others, place, {config.embedding}) | _keep_packed(source, kept, place)
    cache = cache_folder()
    if cache is not None:
        found = CachedWeights(cache, source.content_hash(cache), quantization.name, layout)
        mapped = found.load(place)
        if mapped is not None:
            return tensors | mapped
        try:
            return tensors | found.store(_quantize(source, quantization), place)
        except OSError as error:
            warnings.warn(
                f"quantized weights cannot be kept in {cache} ({error.strerror or error}); going on without. "
                "Set DLF_CACHE to another folder, or to 'off'",
                RuntimeWarning,
                stacklevel=2,
            )
    return tensors | {name: place(name, tensor) for name, tensor in _quantize(source, quantization)}


def quantize(tensor: torch.Tensor, quantization: Quantization) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tiles and scales of a matrix ``[out, in]``; bfloat16 is read as it is, other types as float32."""
    tensor = tensor if tensor.dtype == torch.bfloat16 else tensor.float()
    return _C.quantize(tensor, quantization.format.bits, quantization.format.group, torch.get_num_threads())


def _quantize(source: Source, quantization: Quantization) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tiles and scales of one linear layer after the other."""
    config = source.config
    names = stored_linears(config)
    task = f"Quantizing {source.path.name} to {quantization.name}"
    for path, part, rows in read_tensors(source, names, task):
        target = config.head if part.name == config.embedding else part.name
        layout = quantization.layout({target: (part.shape[0], part.shape[1])})
        pieces = (_quantized(one, part.name, path, quantization) for one in rows)
        yield from leave.gather((dict(zip(layout, piece, strict=True)) for piece in pieces), layout).items()


def _quantized(
    rows: torch.Tensor, name: str, path: Path, quantization: Quantization
) -> tuple[torch.Tensor, torch.Tensor]:
    check_finite(rows, name, path)
    return quantize(rows, quantization)


def _tiles(
    matrices: Iterator[PackedMatrix], part: Part, formats: Mapping[str, MatrixFormat], place: Place
) -> dict[str, torch.Tensor]:
    """Return the tiles of a part that comes some rows after the others."""
    layout = formats[part.name].layout(part.name, (part.shape[0], part.shape[1]))
    return place.gather((one.tiles(part.name) for one in matrices), layout)
