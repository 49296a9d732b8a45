"""GPTQ (Frantar et al., 2210.17323), as AutoGPTQ, GPTQModel and optimum write it.

``qweight`` has the values of an output channel down its columns, several in a word; ``scales`` and ``qzeros`` have a
row for each group of inputs, and ``g_idx`` the group of each input, which is not ascending after quantizing in the
order of activations (``desc_act``). The format ``gptq`` stores each zero lowered by one, ``gptq_v2`` the zero itself.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch

from dlf.checkpoints.packed import PackedMatrix
from dlf.checkpoints.published.stored import (
    FLOATS,
    Integers,
    Scheme,
    StoredLayer,
    StoredMatrix,
    Tensors,
    packed,
    unpack_words,
)
from dlf.support.fields import Fields

__all__ = ["read"]

BITS = (4, 8)
FORMATS = ("gptq", "gptq_v2")
ONES = {4: 0x11111111, 8: 0x01010101}  # one in every field of a word


def read(fields: Fields, modules: Collection[str]) -> Scheme:
    """Read the ``quantization_config`` of a GPTQ checkpoint.

    Raises
    ------
    CheckpointError
        If it has options that dlf does not support.
    """
    bits = fields.raw("bits")
    if bits not in BITS:
        raise fields.error("bits", "4 or 8, the widths of GPTQ that dlf reads")
    key = "checkpoint_format" if "checkpoint_format" in fields else "format"
    form = fields.raw(key) or "gptq"
    if form not in FORMATS:
        raise fields.error(key, f"one of {', '.join(FORMATS)}")
    if fields.raw("pack_dtype") not in (None, "int32", "torch.int32"):
        raise fields.error("pack_dtype", "int32")
    if any(not str(pattern).startswith("-:") for pattern in fields.table("dynamic")):
        raise fields.error("dynamic", "patterns '-:...' of layers that are not quantized; dlf reads one width for all")
    if fields.raw("adapter"):
        raise fields.error("adapter", "absent; give an adapter as dlf.Lora(base, adapter)")
    how = {"bits": bits, "group": _group(fields), "symmetric": fields.raw("sym") is not False}
    return Scheme("GPTQ", partial(_matrix, **how, lowered=form == "gptq"))


def _group(fields: Fields) -> int:
    """Inputs of a group; 0 for the whole channel."""
    if fields.raw("group_size") in (None, -1):
        return 0
    return fields.integer("group_size", 8, 1 << 20)


def _matrix(layer: StoredLayer, bits: int, group: int, symmetric: bool, lowered: bool) -> StoredMatrix | None:
    if layer.get("qweight") is None:
        return None
    out, columns = layer.shape
    groups = layer.groups(group)
    layer.need("qweight", ["I32"], (-(-columns * bits // 32), out))
    layer.need("qzeros", ["I32"], (groups, -(-out * bits // 32)))
    scale = layer.need("scales", FLOATS, (groups, out)).dtype
    ordered = layer.get("g_idx") is not None
    if ordered:
        layer.need("g_idx", ["I32", "I64"], (columns,))
    integers = Integers(bits, group, scale, symmetric, "g_idx" if ordered else None)

    def unpack(tensors: Tensors) -> PackedMatrix | torch.Tensor:
        values = unpack_words(tensors["qweight"].t(), bits, columns)
        words = tensors["qzeros"]
        if lowered:  # added to the whole word, since a zero of 0 had borrowed from its neighbour
            words = words + ONES[bits]
        zero = unpack_words(words, bits, out).t()
        return packed(values, tensors["scales"].t(), zero, integers, tensors.get("g_idx"))

    return layer.found(f"GPTQ {bits}-bit, {f'groups of {group}' if group else 'per channel'}", unpack, integers)
