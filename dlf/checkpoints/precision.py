"""Types of a model's weights: their names, and the layout of quantized ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dlf import _C
from dlf.errors import OptionError

__all__ = [
    "CPU_WEIGHTS",
    "DTYPES",
    "SAFETENSORS_DTYPES",
    "TILE_PARTS",
    "TORCH_DTYPES",
    "WEIGHTS",
    "MatrixFormat",
    "Precision",
    "Quantization",
    "TensorLayout",
    "scale_name",
    "tile_layouts",
]

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES = tuple(TORCH_DTYPES)
SAFETENSORS_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
TILE_OUTPUTS = 16  # these two as in cpp/ops/matrix.h
INPUT_GROUP = 32
ITEM_BYTES = (  # of safetensors
    dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1)
    | dict.fromkeys(("I16", "U16", "F16", "BF16"), 2)
    | dict.fromkeys(("I32", "U32", "F32"), 4)
    | dict.fromkeys(("I64", "U64", "F64", "C64"), 8)
)


@dataclass(frozen=True)
class TensorLayout:
    """Type, as safetensors calls it, and shape of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def item_bytes(self) -> int:
        """Bytes of one value."""
        return ITEM_BYTES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.item_bytes


@dataclass(frozen=True)
class MatrixFormat:
    """How tiles store a linear layer's weights (``cpp/ops/matrix.h``).

    Parameters
    ----------
    bits : {4, 6, 8}
        Of a value in the tiles.
    group : int
        Inputs that share a scale; 0 is all inputs of an output channel.
    scale : str
        Type of a scale, as safetensors calls it; ``"I8"`` if a float16 scale of each block multiplies it.
    minimum : str, optional
        Type of a group's minimum; ``"I8"`` beside a float scale is a zero point.
    block : int
        Inputs that share a float16 scale for scales; 0 if scales have one level.
    """

    bits: int
    group: int
    scale: str
    minimum: str | None = None
    block: int = 0

    @classmethod
    def of(
        cls,
        bits: int,
        group: int,
        scale: str = "F16",
        *,
        signed: bool = True,
        minimum: bool = False,
        zero: bool = False,
        block: int = 0,
    ) -> MatrixFormat | None:
        """Return the format of tiles that keep such integers exactly, or None if none do.

        Parameters
        ----------
        bits, group, scale, block
            Of the integers as a file has them; `scale` is the type of the floats.
        signed
            Whether they are from −2^(bits−1) on, not from 0.
        minimum, zero
            Whether groups have minimums, or zero points.
        """
        width = _C.tile_bits(bits, group, signed, minimum)
        two_levels = block > 0
        if width == 0 or (zero and (minimum or two_levels)) or (two_levels and scale != "F16"):
            return None
        if two_levels and not (signed or minimum):
            return None
        fine = "I8" if two_levels else scale
        low = fine if minimum else "I8" if zero or not signed else None
        return cls(width, group, fine, low, block)

    def layout(self, name: str, shape: tuple[int, int]) -> dict[str, TensorLayout]:
        """Layouts of the tiles of a weight ``[out, in]``, and of what lies beside them."""
        count = -(-shape[0] // TILE_OUTPUTS)
        step = max(self.block or self.group, INPUT_GROUP)
        inputs = -(-shape[1] // step) * step
        groups = (count, inputs // self.group, TILE_OUTPUTS) if self.group else (count, TILE_OUTPUTS)
        lines = (6, TILE_OUTPUTS * 4) if self.bits == 6 else (TILE_OUTPUTS, 4)
        tiles = (count, inputs * self.bits * TILE_OUTPUTS // 8 // math.prod(lines), *lines)
        found = {name: TensorLayout("I8" if self.bits == 8 else "U8", tiles)}
        found[scale_name(name)] = TensorLayout(self.scale, groups)
        if self.minimum:
            found[f"{name}_minimum"] = TensorLayout(self.minimum, groups)
        if self.block:
            blocks = TensorLayout("F16", (count, inputs // self.block, TILE_OUTPUTS))
            found[f"{name}_block_scale"] = blocks
            if self.minimum:
                found[f"{name}_block_minimum"] = blocks
        return found

    def __str__(self) -> str:
        """Words for people: "int4, float16 scale and zero point for 128 inputs"."""
        names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "6-bit" if self.bits < 6 else "int8"}
        low = "" if self.minimum is None else " and zero point" if self.minimum != self.scale else " and minimum"
        inputs = f"{self.group} inputs" if self.group else "each channel"
        block = f", float16 for {self.block}" if self.block else ""
        return f"int{self.bits}, {names[self.scale]} scale{low} for {inputs}{block}"


# What the name of each tensor of a tiled weight adds to the weight's, and to its slot's.
TILE_PARTS = {
    "": "",
    "_scale": ".scale",
    "_minimum": ".minimum",
    "_block_scale": ".block_scale",
    "_block_minimum": ".block_minimum",
}


def scale_name(weight: str) -> str:
    """Name of the scales that belong to a quantized weight."""
    return f"{weight}_scale"


def tile_layouts(formats: Mapping[str, MatrixFormat], shapes: Mapping[str, tuple[int, int]]) -> dict[str, TensorLayout]:
    """Layouts of the tensors of linear layers, which are given by name, with their shapes ``[out, in]``."""
    found = [one.layout(name, shapes[name]) for name, one in formats.items()]
    tiles = {name: one[name] for name, one in zip(formats, found, strict=True)}
    # Tiles first: their sizes are multiples of 64 bytes, so all of them stay aligned.
    return tiles | {name: layout for one in found for name, layout in one.items()}


@dataclass(frozen=True)
class Quantization:
    """Integers of 8 or 4 bits in place of a linear layer's weights.

    Parameters
    ----------
    name : str
        Its name in `weights`.
    format : MatrixFormat
        How the tiles store them.
    """

    name: str
    format: MatrixFormat

    def layout(self, linears: Mapping[str, tuple[int, int]]) -> dict[str, TensorLayout]:
        """Layouts of the tiles and scales of linear layers, which are given by name and shape ``[out, in]``."""
        return tile_layouts(dict.fromkeys(linears, self.format), linears)


QUANTIZATIONS = {
    "int8": Quantization("int8", MatrixFormat(8, 0, "F32")),
    "int4": Quantization("int4", MatrixFormat(4, 32, "BF16")),
    "int4-g64": Quantization("int4-g64", MatrixFormat(4, 64, "BF16")),
}
FLOATS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
WEIGHTS = (*FLOATS, *QUANTIZATIONS)
CPU_WEIGHTS = tuple(name for name in WEIGHTS if name != "fp16")


@dataclass(frozen=True)
class Precision:
    """The types that a model is loaded in.

    Parameters
    ----------
    dtype : {"auto", "float32", "bfloat16", "float16"}
        Type of the embedding, the norms and the KV cache, and of linear layers that are not quantized; ``"auto"``
        keeps the file's. ``"float16"`` is for CUDA devices.
    quantization : Quantization, optional
        How the linear layers are quantized.
    packed : bool
        Whether linear layers that a file has as integers and scales stay so; else they become floats.
    """

    dtype: str = "auto"
    quantization: Quantization | None = None
    packed: bool = True

    @classmethod
    def of(cls, dtype: str = "auto", weights: str | None = None) -> Precision:
        """Return the precision that the options `dtype` and `weights` ask for together.

        Raises
        ------
        ValueError
            If one of them has no such choice, or the two contradict each other.
        """
        if dtype not in ("auto", *DTYPES):
            raise OptionError(f"dtype is {dtype!r}; it takes auto, {', '.join(DTYPES)}", "dtype")
        if weights is None:
            return cls(dtype)
        if weights in QUANTIZATIONS:
            return cls(dtype, QUANTIZATIONS[weights])
        if weights not in FLOATS:
            raise OptionError(f"weights is {weights!r}; it takes {', '.join(WEIGHTS)}", "weights")
        if dtype not in ("auto", FLOATS[weights]):
            raise OptionError(
                f"dtype {dtype!r} and weights {weights!r} contradict each other: the KV cache has the type of weights "
                f"that are not quantized; leave dtype out",
                "dtype",
            )
        return cls(FLOATS[weights], packed=False)

    @classmethod
    def stored(cls, weights: str) -> Precision:
        """Return the precision of a type of weights; beside quantized ones, everything else is bfloat16."""
        return cls.of("bfloat16" if weights in QUANTIZATIONS else "auto", weights)

    def float_dtype(self, file_dtype: str | None, cuda: bool = False) -> str:
        """`dtype`, with ``"auto"`` resolved for a file; on the CPU float16 becomes float32, which can hold it."""
        if self.dtype != "auto":
            return self.dtype
        return file_dtype if file_dtype == "bfloat16" or (cuda and file_dtype == "float16") else "float32"
