"""Loads a checkpoint with its linear layers quantized, from the cache if that has them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping

import torch

from dlf import _C
from dlf.checkpoints.checkpoint import check_finite, load_tensors, read_tensors
from dlf.checkpoints.config import ModelConfig
from dlf.checkpoints.huge_pages import leave, placement
from dlf.checkpoints.packed import PackedMatrix
from dlf.checkpoints.precision import TILE_PARTS, MatrixFormat, Precision, Quantization, scale_name, tile_layouts
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
    """Format of each linear layer that will be in tiles, by name; a tied embedding counts as the head."""
    if precision.quantization is not None:
        return dict.fromkeys(linear_shapes(config), precision.quantization.format)
    if not precision.packed:
        return {}
    return {name: config.packed[part.tensor] for name, part in targets(config) if part.tensor in config.packed}


def weights_bytes(config: ModelConfig, precision: Precision, cuda: bool = False) -> int:
    """Bytes that a model's weights take."""
    shapes = {part.name: part.shape for part in config.parts.values()}
    width = 4 if precision.float_dtype(config.dtype, cuda) == "float32" else 2
    formats = formats_of(config, precision)
    floats = sum(math.prod(shape) for name, shape in shapes.items() if name not in formats)
    return width * floats + sum(one.nbytes for one in tile_layouts(formats, linear_shapes(config)).values())


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
    config, shapes = source.config, linear_shapes(source.config)
    sizes = {name: one.nbytes for name, one in tile_layouts(formats, shapes).items()}
    floats = {part.name for part in config.parts.values()} - formats.keys()
    tied = config.tie_word_embeddings and config.head not in formats
    if tied:
        shapes[config.embedding] = shapes.pop(config.head)
    sizes |= {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items() if name in floats}
    place = placement(always_read(config, sizes)) if huge_pages else leave
    tensors = load_tensors(source, dtype, floats, place, set() if tied else {config.embedding})
    if tied:
        tensors[config.head] = tensors[config.embedding]
    parts: dict[str, dict[str, Part]] = {}  # by stored tensor, then by name
    for name, part in targets(config):
        if name in formats:
            parts.setdefault(part.tensor, {})[name] = part
    for stored, members in parts.items():
        matrix = source.matrix(stored)
        if not isinstance(matrix, PackedMatrix) or matrix.format != config.packed[stored]:
            raise CheckpointError(
                f"{source.path_of(stored)}: tensor '{stored}' has other integers and scales than its header says; "
                "fetch the checkpoint again, or load it as floats (weights='bf16')"
            )
        for name, part in members.items():
            packed = matrix if part.name == part.tensor else matrix.select(part.rows)
            if packed.shape != part.shape:
                raise CheckpointError(
                    f"{source.path_of(stored)}: tensor '{stored}' has shape {list(matrix.shape)}; the model takes "
                    f"{list(part.stored)}"
                )
            tensors |= {one: place(one, tensor) for one, tensor in packed.tiles(name).items()}
        del matrix, packed
    source.close()
    return tensors


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
        Tensors for `ModelConfig.by_slot`; the embedding, norms and biases are `dtype`.

    Raises
    ------
    FileNotFoundError, CheckpointError
        As `load_tensors` does.
    """
    config = source.config
    linears = linear_shapes(config)
    layout = quantization.layout(linears)
    place = placement(always_read(config, {n: one.nbytes for n, one in layout.items()})) if huge_pages else leave
    others = {part.name for part in config.parts.values()} - linears.keys()
    tensors = load_tensors(source, dtype, others, place, {config.embedding})
    cache = cache_folder()
    if cache is not None:
        kept = CachedWeights(cache, source.content_hash(cache), quantization.name, layout)
        found = kept.load(place)
        if found is not None:
            return tensors | found
        try:
            return tensors | kept.store(_quantize(source, quantization), place)
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
    for path, part, tensor in read_tensors(source, names, task, keep=False):
        check_finite(tensor, part.name, path)
        tiles, scale = quantize(tensor, quantization)
        del tensor  # and with it the file's pages, before the next tensor is read
        target = config.head if part.name == config.embedding else part.name
        yield target, tiles
        yield scale_name(target), scale
        del tiles, scale
