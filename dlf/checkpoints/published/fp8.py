"""Weights in eight-bit floating point with a scale for the matrix, each channel or each block.

Qwen3-FP8 and DeepSeek-V3 write blocks of 128 x 128 with ``weight_scale_inv``, which in spite of its name is multiplied.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch

from dlf.checkpoints.published.stored import FLOATS, Scheme, StoredLayer, StoredMatrix, Tensors
from dlf.support.fields import Fields

__all__ = ["float8_matrix", "read"]

SCALES = ("weight_scale_inv", "weight_scale")
COMPANIONS = frozenset({"input_scale", "activation_scale", "k_scale", "v_scale"})
FLOAT8 = ("F8_E4M3", "F8_E5M2")


def read(fields: Fields, modules: Collection[str]) -> Scheme:
    """Read the ``quantization_config`` of a checkpoint in eight-bit floating point.

    How activations were to be rounded (``activation_scheme``) is not used: they stay wider.

    Raises
    ------
    CheckpointError
        If it has options that dlf does not support.
    """
    block = None
    if "weight_block_size" in fields:
        sizes = fields.numbers("weight_block_size", 2, 1, 1 << 20)
        block = int(sizes[0]), int(sizes[1])
    if fields.raw("fmt") not in (None, "e4m3"):
        raise fields.error("fmt", "'e4m3'")
    return Scheme("FP8", partial(_matrix, block=block), COMPANIONS)


def _matrix(layer: StoredLayer, block: tuple[int, int] | None) -> StoredMatrix | None:
    weight = layer.get("weight")
    if weight is None or weight.dtype not in FLOAT8:
        return None
    scale = next((part for part in SCALES if layer.get(part) is not None), SCALES[0])
    return float8_matrix(layer, scale, block, "FP8")


def float8_matrix(layer: StoredLayer, scale: str, block: tuple[int, int] | None, name: str) -> StoredMatrix:
    """Take a float8 matrix ``weight`` whose `scale` is one for all, one a channel, or one a block of ``(out, in)``."""
    out, columns = layer.shape
    layer.need("weight", FLOAT8, layer.shape)
    shapes = [(), (1,), (1, 1), (out,), (out, 1)]
    if block is not None:
        shapes.append((-(-out // block[0]), -(-columns // block[1])))
    stored = layer.need(scale, (*FLOATS, "F8_E8M0"), *shapes)
    sizes = _block(stored.shape, layer.shape, block)

    def unpack(tensors: Tensors) -> torch.Tensor:
        weight = tensors["weight"].float()
        grid = tensors[scale].float().reshape(-(-out // sizes[0]), -(-columns // sizes[1]))
        for begin, row in zip(range(0, out, sizes[0]), grid, strict=True):
            weight[begin : begin + sizes[0]] *= row if len(row) == 1 else row.repeat_interleave(sizes[1])[:columns]
        return weight

    whole = {layer.shape: "one scale", (1, columns): "per channel"}
    return layer.found(f"{name}, {whole.get(sizes, f'blocks of {sizes[0]} x {sizes[1]}')}", unpack)


def _block(grid: tuple[int, ...], shape: tuple[int, int], block: tuple[int, int] | None) -> tuple[int, int]:
    """Size of the blocks that share a scale."""
    if block is not None and len(grid) == 2 and grid == (-(-shape[0] // block[0]), -(-shape[1] // block[1])):
        return block
    return shape if all(size == 1 for size in grid) else (1, shape[1])
