"""AWQ (Lin et al., 2306.00978) in the layout ``gemm`` of AutoAWQ: a row for each input, eight outputs in a word."""

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

NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)  # place in its word of each of eight neighbouring outputs


def read(fields: Fields, modules: Collection[str]) -> Scheme:
    """Read the ``quantization_config`` of an AWQ checkpoint.

    Raises
    ------
    CheckpointError
        If it has options that dlf does not support.
    """
    key = "version" if "version" in fields else "format"
    version = fields.raw(key)
    if version is not None and (not isinstance(version, str) or version.lower() != "gemm"):
        raise fields.error(key, "'gemm', the layout of AWQ that dlf reads")
    if fields.raw("bits", "w_bit") != 4:
        raise fields.error("w_bit" if "w_bit" in fields and "bits" not in fields else "bits", "4")
    if fields.raw("zero_point") is False:
        raise fields.error("zero_point", "true; AWQ without zeros is not supported")
    size = "q_group_size" if "q_group_size" in fields and "group_size" not in fields else "group_size"
    group = 0 if fields.raw(size) in (None, -1) else fields.integer(size, 8, 1 << 20)
    return Scheme("AWQ", partial(_matrix, group=group))


def _matrix(layer: StoredLayer, group: int) -> StoredMatrix | None:
    if layer.get("qweight") is None:
        return None
    out, columns = layer.shape
    groups = layer.groups(group)
    if out % 8:
        raise layer.error(f"has a layer '{layer.module}' of {out} outputs; AWQ packs eight in a word")
    layer.need("qweight", ["I32"], (columns, out // 8))
    layer.need("qzeros", ["I32"], (groups, out // 8))
    integers = Integers(4, group, layer.need("scales", FLOATS, (groups, out)).dtype, symmetric=False)

    def unpack(tensors: Tensors) -> PackedMatrix | torch.Tensor:
        values, zero = (
            unpack_words(tensors[part], 4, out).view(-1, out // 8, 8)[:, :, NIBBLES].reshape(-1, out).t().contiguous()
            for part in ("qweight", "qzeros")
        )
        return packed(values, tensors["scales"].t(), zero, integers)

    return layer.found(f"AWQ 4-bit, {f'groups of {group}' if group else 'per channel'}", unpack, integers)
