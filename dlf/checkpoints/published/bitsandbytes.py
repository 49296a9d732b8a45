"""bitsandbytes: NF4 and FP4 (Dettmers et al., 2305.14314) and LLM.int8 (2208.07339).

Four-bit values are places in a table of 16 numbers, two in a byte with the first in the upper half, and each block of
them along the rows has a scale ``absmax``. With double quantization these are bytes in turn: places in a table of 256
numbers, with a scale for each block of them and one offset.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection

import torch

from dlf.checkpoints.packed import PackedMatrix
from dlf.checkpoints.published.stored import Integers, Scheme, StoredLayer, StoredMatrix, Tensors
from dlf.errors import CheckpointError
from dlf.support.fields import Fields

__all__ = ["read"]

TYPES = ("nf4", "fp4")
STATE = "weight.quant_state.bitsandbytes__"
MAX_STATE_BYTES = 1 << 16
ITEM_BYTES = {"U8": 1, "I8": 1, "BF16": 2, "F16": 2, "F32": 4}  # of bnb_4bit_quant_storage
PIECE = 1 << 22  # values that are looked up at once


def read(fields: Fields, modules: Collection[str]) -> Scheme:
    """Read the ``quantization_config`` of a bitsandbytes checkpoint.

    Raises
    ------
    CheckpointError
        If it has options that dlf does not support.
    """
    kind = fields.raw("bnb_4bit_quant_type")
    if (fields.raw("load_in_4bit", "_load_in_4bit")) and kind not in (None, *TYPES):
        raise fields.error("bnb_4bit_quant_type", f"one of {', '.join(TYPES)}")
    return Scheme("bitsandbytes", _matrix, frozenset({"weight_format"}))


def _matrix(layer: StoredLayer) -> StoredMatrix | None:
    if layer.get("SCB") is not None:
        return _eight_bits(layer)
    for kind in TYPES:
        if layer.get(STATE + kind) is not None:
            return _four_bits(layer, kind)
    return None


def _eight_bits(layer: StoredLayer) -> StoredMatrix:
    layer.need("weight", ["I8"], layer.shape)
    layer.need("SCB", ["F32"], (layer.shape[0],))
    if layer.get("weight_format") is not None:
        layer.need("weight_format", ["U8"], (), (1,))

    def unpack(tensors: Tensors) -> PackedMatrix:
        if "weight_format" in tensors and int(tensors["weight_format"]):
            raise CheckpointError(
                "int8 weights are in the order of a GPU's kernels, not in rows; save the model again with a "
                "bitsandbytes of 2024 or later"
            )
        return PackedMatrix(tensors["weight"], (tensors["SCB"] / 127)[:, None], None, 8, 0)

    return layer.found("bitsandbytes int8, per channel", unpack, Integers(8, 0, "F32", symmetric=True))


def _four_bits(layer: StoredLayer, kind: str) -> StoredMatrix:
    count = math.prod(layer.shape)
    stored = layer.get("weight")
    size = ITEM_BYTES.get(stored.dtype, 1) if stored is not None else 1
    nbytes = (count + 1) // 2
    layer.need("weight", list(ITEM_BYTES), ((nbytes + size - 1) // size, 1))
    layer.need("weight.quant_map", ["F32"], (16,))
    state = layer.get(STATE + kind)
    layer.need(STATE + kind, ["U8"], (min(math.prod(state.shape) if state else 0, MAX_STATE_BYTES),))
    absmax = layer.get("weight.absmax")
    blocks = math.prod(absmax.shape) if absmax is not None else 0
    nested = absmax is not None and absmax.dtype == "U8"
    # The size of blocks is in the state, which is read with the values.
    layer.need("weight.absmax", ["U8" if nested else "F32"], (min(blocks, count),))
    if nested:
        scales = layer.get("weight.nested_absmax")
        layer.need("weight.nested_absmax", ["F32"], (min(math.prod(scales.shape) if scales else 0, blocks),))
        layer.need("weight.nested_quant_map", ["F32"], (256,))

    def unpack(tensors: Tensors) -> torch.Tensor:
        state = _state(tensors[STATE + kind])
        if state.raw("quant_type") != kind or state.raw("shape") != list(layer.shape):
            raise state.error("shape", f"{list(layer.shape)} of quant_type {kind!r}")
        scale = tensors["weight.absmax"]
        if nested:
            offset = state.number("nested_offset", -1e30, 1e30)
            scale = _looked_up(
                scale,
                tensors["weight.nested_quant_map"][:, None],
                tensors["weight.nested_absmax"],
                state.integer("nested_blocksize", 2, 1 << 20),
                len(scale),
                state,
            )
            scale = scale + offset
        places, table = tensors["weight"].contiguous().view(torch.uint8).flatten()[:nbytes], tensors["weight.quant_map"]
        pairs = torch.stack((table.repeat_interleave(16), table.repeat(16)), dim=1)  # the two numbers of each byte
        block = state.integer("blocksize", 2, 1 << 20)
        return _looked_up(places, pairs, scale, block, count, state).view(layer.shape)

    return layer.found(f"bitsandbytes {kind}{', double quantized' if nested else ''}", unpack)


def _looked_up(
    places: torch.Tensor, table: torch.Tensor, scale: torch.Tensor, block: int, count: int, state: Fields
) -> torch.Tensor:
    """Numbers of a table ``[entries, numbers of a place]`` at these places, times the scale of each block."""
    if len(scale) != -(-count // block) or block % table.shape[1]:
        raise state.error("blocksize", f"the size of {len(scale)} blocks of {count} values")
    found = torch.empty(len(places) * table.shape[1], dtype=torch.float32)
    step = max(1, PIECE // block) * block
    for i in range(0, len(found), step):
        at = slice(i // table.shape[1], (i + step) // table.shape[1])
        part = table.index_select(0, places[at].int()).flatten()
        part *= scale[i // block : (i + step) // block].repeat_interleave(block)[: len(part)]
        found[i : i + step] = part
    return found[:count]


def _state(stored: torch.Tensor) -> Fields:
    """Sizes and types that a tensor holds as JSON."""
    where = "quant_state"
    try:
        values = json.loads(bytes(stored.numpy()))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not valid JSON ({error}); fetch the checkpoint again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{where} must hold a JSON object; fetch the checkpoint again")
    return Fields(values, {}, where)
