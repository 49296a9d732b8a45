"""compressed-tensors, as llm-compressor writes it: integers packed in words or bytes, or eight-bit floating point.

``config_groups`` says how the layers that each group's ``targets`` name are quantized. The files say which layers are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from dlf.checkpoints.packed import PackedMatrix
from dlf.checkpoints.precision import MatrixFormat, TensorLayout
from dlf.checkpoints.published.fp8 import COMPANIONS, FLOAT8, float8_matrix
from dlf.checkpoints.published.stored import (
    FLOATS,
    Integers,
    Scheme,
    StoredLayer,
    StoredMatrix,
    Tensors,
    pack_words,
    packed,
    unpack_words,
)
from dlf.support.fields import Fields
from dlf.support.module_patterns import first_matches

__all__ = ["config_of", "layout_of", "read", "tensors_of"]

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense")
STRATEGIES = ("tensor", "channel", "group", "block")
MAX_GROUPS, MAX_TARGETS = 64, 4096
LEFT = COMPANIONS | {"weight_shape", "weight_zero_point", "input_zero_point", "output_scale", "output_zero_point"}
CLASS = "Linear"  # a target that names all linear layers


@dataclass(frozen=True)
class Weights:
    """How the layers of a group are quantized: integers with a scale for `group` inputs, or floats with `block`."""

    bits: int
    integer: bool
    symmetric: bool
    strategy: str
    group: int
    block: tuple[int, int] | None


def read(fields: Fields, modules: Collection[str]) -> Scheme:
    """Read the ``quantization_config`` of a compressed-tensors checkpoint.

    Rounding of activations and of the KV cache at run time is not used: they stay wider.

    Raises
    ------
    CheckpointError
        If it has options that dlf does not support.
    """
    _check_format(fields)
    for key in ("transform_config", "sparsity_config"):
        if fields.table(key) and fields.raw(key) != {"format": "dense"}:
            raise fields.error(key, "absent, since dlf neither transforms activations nor reads sparse weights")
    table = fields.table("config_groups")
    if not 1 <= len(table) <= MAX_GROUPS:
        raise fields.error("config_groups", f"an object with 1 to {MAX_GROUPS} groups")
    groups, targets = [], []
    for name in table:
        group = Fields(fields.table("config_groups"), {}, f"{fields.where}: 'config_groups'").table(name)
        one = Fields(group, {}, f"{fields.where}: config_groups {name!r:.60}")
        _check_format(one)
        if one.table("weights"):
            groups.append(_weights(Fields(one.table("weights"), {}, f"{one.where} weights")))
            targets.append(_targets(one))
    chosen = _chosen(targets, modules, fields.where)
    return Scheme("compressed-tensors", partial(_matrix, groups=groups, chosen=chosen), LEFT)


def _check_format(fields: Fields) -> None:
    if fields.raw("format") not in (None, *FORMATS):
        raise fields.error("format", f"one of {', '.join(FORMATS)}, the formats that dlf reads")


def _weights(fields: Fields) -> Weights:
    integer = fields.raw("type") in (None, "int")
    if not integer and fields.raw("type") != "float":
        raise fields.error("type", "'int' or 'float'")
    bits = 8 if fields.raw("num_bits") is None else fields.integer("num_bits", 1, 64)
    if bits not in ((4, 8) if integer else (8,)):
        raise fields.error("num_bits", "4 or 8 for integers, 8 for floats")
    size = fields.raw("group_size")
    strategy = fields.raw("strategy") or ("tensor" if size is None else "channel" if size == -1 else "group")
    if strategy not in STRATEGIES or (integer and strategy == "block"):
        raise fields.error("strategy", "one of tensor, channel and group or, for floats, block")
    group = fields.integer("group_size", 8, 1 << 20) if strategy == "group" else 0
    block = None
    if strategy == "block":
        sizes = fields.numbers("block_structure", 2, 1, 1 << 20)
        block = int(sizes[0]), int(sizes[1])
    elif strategy == "group":
        block = 1, group
    return Weights(bits, integer, fields.raw("symmetric") is not False, strategy, group, block)


def _targets(fields: Fields) -> list[str]:
    said = fields.raw("targets")
    if not isinstance(said, list) or len(said) > MAX_TARGETS or not all(isinstance(one, str) for one in said):
        raise fields.error("targets", f"a list of at most {MAX_TARGETS} names")
    return said


def _chosen(targets: list[list[str]], modules: Collection[str], where: str) -> dict[str, int]:
    """Number of the group of each layer: names first, then expressions, then the class of layers."""
    if len(targets) == 1:
        return dict.fromkeys(modules, 0)
    numbered = [(target, number) for number, names in enumerate(targets) for target in names]
    expressions = {target.removeprefix("re:"): float(i) for target, i in numbered if target.startswith("re:")}
    whole = next((i for target, i in numbered if target == CLASS), -1)
    found: dict[str, Any] = first_matches(expressions, modules, whole, f"{where}: 'targets'", "({})")
    found |= {target: i for target, i in reversed(numbered) if target in found}
    return {name: int(i) for name, i in found.items() if i >= 0}


def _matrix(layer: StoredLayer, groups: list[Weights], chosen: dict[str, int]) -> StoredMatrix | None:
    weight, words = layer.get("weight"), layer.get("weight_packed")
    if words is None and (weight is None or weight.dtype not in ("I8", *FLOAT8)):
        return None
    if layer.module not in chosen:
        raise layer.error(
            f"has a quantized layer '{layer.module}' that no group of config_groups targets; fetch the checkpoint again"
        )
    how = groups[chosen[layer.module]]
    if not how.integer:
        return float8_matrix(layer, "weight_scale", how.block, "compressed-tensors FP8")
    return _integers(layer, how, words is not None)


def _integers(layer: StoredLayer, how: Weights, words: bool) -> StoredMatrix:
    out, columns = layer.shape
    count = layer.groups(how.group)
    if words:
        layer.need("weight_packed", ["I32"], (out, -(-columns * how.bits // 32)))
    else:
        layer.need("weight", ["I8"], layer.shape)
    scalar = [(1,), ()] if how.strategy == "tensor" else []
    scale_type = layer.need("weight_scale", FLOATS, (out, count), *scalar).dtype
    if not how.symmetric:
        packed_zero = (-(-out * how.bits // 32), count)
        zero = layer.get("weight_zero_point")
        if words and zero is not None and zero.dtype == "I32":
            layer.need("weight_zero_point", ["I32"], packed_zero)
        else:
            layer.need("weight_zero_point", ["I8"], (out, count), *scalar)
    ordered = layer.get("weight_g_idx") is not None
    if ordered:
        layer.need("weight_g_idx", ["I32", "I64"], (columns,))
    integers = Integers(how.bits, how.group, scale_type, how.symmetric, "weight_g_idx" if ordered else None)
    middle = 1 << (how.bits - 1)

    def unsigned(values: torch.Tensor) -> torch.Tensor:
        return (values + middle).to(torch.uint8) if how.bits == 4 else values.view(torch.uint8) ^ 128

    def unpack(tensors: Tensors) -> PackedMatrix | torch.Tensor:
        values = unpack_words(tensors["weight_packed"], how.bits, columns) if words else unsigned(tensors["weight"])
        scale = tensors["weight_scale"].expand(out, count)
        zero = tensors.get("weight_zero_point")
        if zero is not None:
            packed_zero = zero.dtype == torch.int32
            zero = unpack_words(zero.t(), how.bits, out).t() if packed_zero else unsigned(zero).expand(out, count)
        return packed(values, scale, zero, integers, tensors.get("weight_g_idx"))

    form = f"groups of {how.group}" if how.group else "one scale" if how.strategy == "tensor" else "per channel"
    return layer.found(f"compressed-tensors {how.bits}-bit, {form}", unpack, integers)


def config_of(form: MatrixFormat, others: Iterable[str] = ()) -> dict[str, Any]:
    """Return the ``quantization_config`` of linear layers that `tensors_of` packs: all but the tensors `others`."""
    weights: dict[str, Any] = {"num_bits": form.bits, "type": "int", "symmetric": True}
    weights |= {"strategy": "group", "group_size": form.group} if form.group else {"strategy": "channel"}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": [CLASS], "weights": weights}},
        "ignore": [name.removesuffix(".weight") for name in others if name.endswith(".weight")],
    }


def layout_of(module: str, shape: tuple[int, int], form: MatrixFormat) -> dict[str, TensorLayout]:
    """Return the layouts of `tensors_of` for a layer ``(out, in)``."""
    out, columns = shape
    return {
        f"{module}.weight_packed": TensorLayout("I32", (out, -(-columns * form.bits // 32))),
        f"{module}.weight_scale": TensorLayout(form.scale, (out, -(-columns // form.group) if form.group else 1)),
        f"{module}.weight_shape": TensorLayout("I64", (2,)),
    }


def tensors_of(module: str, matrix: PackedMatrix) -> dict[str, torch.Tensor]:
    """Return the stored tensors of a layer with signed integers, in the format ``pack-quantized``."""
    middle = 1 << (matrix.bits - 1)
    return {
        f"{module}.weight_packed": pack_words((matrix.values.to(torch.int16) + middle).to(torch.uint8), matrix.bits),
        f"{module}.weight_scale": matrix.scale,
        f"{module}.weight_shape": torch.tensor(matrix.shape),
    }
