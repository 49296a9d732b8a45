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
from dlf.checkpoints.precision import Precision, Quantization, scale_name
from dlf.checkpoints.source import Source
from dlf.checkpoints.weight_cache import CachedWeights, cache_folder

__all__ = ["always_read", "linear_shapes", "load_quantized", "stored_linears", "weights_bytes"]

FLOATS = ("embedding", "positions", "router")  # slots of matrices that are small, or of which a token reads one row


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Name and shape ``[out, in]`` of every linear layer's weight; a tied embedding counts as the head."""
    shapes = {
        part.name: (part.shape[0], part.shape[1])
        for slot, part in config.parts.items()
        if len(part.shape) == 2 and not slot.endswith(FLOATS) and part.name != config.embedding
    }
    return shapes | {config.head: (config.spec.vocab_size, config.spec.hidden_size)}


def stored_linears(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """`linear_shapes`, with a tied head under its name in the file."""
    shapes = linear_shapes(config)
    if config.tie_word_embeddings:
        shapes[config.embedding] = shapes.pop(config.head)
    return shapes


def always_read(config: ModelConfig, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes of the tensors that every step reads: not those of experts, which stay where they are."""
    experts = {part.name for slot, part in config.parts.items() if ".experts." in slot}
    experts |= {scale_name(name) for name in experts}
    return {name: size for name, size in sizes.items() if name not in experts}


def weights_bytes(config: ModelConfig, precision: Precision, cuda: bool = False) -> int:
    """Bytes that a model's weights take."""
    shapes = {part.name: part.shape for part in config.parts.values()}
    width = 4 if precision.float_dtype(config.dtype, cuda) == "float32" else 2
    if precision.quantization is None:
        return width * sum(math.prod(shape) for shape in shapes.values())
    linears = linear_shapes(config)
    others = sum(math.prod(shape) for name, shape in shapes.items() if name not in linears)
    return width * others + sum(one.nbytes for one in precision.quantization.layout(linears).values())


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


def _quantize(source: Source, quantization: Quantization) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tiles and scales of one linear layer after the other."""
    config = source.config
    names = stored_linears(config)
    task = f"Quantizing {source.path.name} to {quantization.name}"
    for path, part, tensor in read_tensors(source, names, task, keep=False):
        if tensor.dtype != torch.bfloat16:
            tensor = tensor.float()
        check_finite(tensor, part.name, path)
        tiles, scale = _C.quantize(tensor, quantization.bits, quantization.group, torch.get_num_threads())
        del tensor  # and with it the file's pages, before the next tensor is read
        target = config.head if part.name == config.embedding else part.name
        yield target, tiles
        yield scale_name(target), scale
        del tiles, scale
