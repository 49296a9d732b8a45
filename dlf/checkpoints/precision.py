"""Types of a model's weights: their names, and the layout of quantized ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dlf.errors import OptionError

__all__ = [
    "CPU_WEIGHTS",
    "DTYPES",
    "SAFETENSORS_DTYPES",
    "TORCH_DTYPES",
    "WEIGHTS",
    "Precision",
    "Quantization",
    "TensorLayout",
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
class Quantization:
    """Integers of 8 or 4 bits in place of a linear layer's weights.

    Parameters
    ----------
    name : str
        Its name in `weights`.
    bits : int
        8 or 4.
    group : int
        Inputs that share a scale; 0 is all inputs of an output channel.
    """

    name: str
    bits: int
    group: int

    def layout(self, linears: Mapping[str, tuple[int, int]]) -> dict[str, TensorLayout]:
        """Layouts of the tiles and scales of linear layers, which are given by name and shape ``[out, in]``."""
        tiles, scales = {}, {}
        for name, (rows, columns) in linears.items():
            count = -(-rows // TILE_OUTPUTS)
            step = max(self.group, INPUT_GROUP)
            inputs = -(-columns // step) * step
            if self.bits == 8:
                tiles[name] = TensorLayout("I8", (count, inputs // 4, TILE_OUTPUTS, 4))
                scales[scale_name(name)] = TensorLayout("F32", (count, TILE_OUTPUTS))
            else:
                tiles[name] = TensorLayout("U8", (count, inputs // 8, TILE_OUTPUTS, 4))
                scales[scale_name(name)] = TensorLayout("BF16", (count, inputs // self.group, TILE_OUTPUTS))
        return tiles | scales  # tiles first: their sizes are multiples of 64 bytes, so all of them stay aligned


def scale_name(weight: str) -> str:
    """Name of the scales that belong to a quantized weight."""
    return f"{weight}_scale"


QUANTIZATIONS = {
    "int8": Quantization("int8", 8, 0),
    "int4": Quantization("int4", 4, 32),
    "int4-g64": Quantization("int4-g64", 4, 64),
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
    """

    dtype: str = "auto"
    quantization: Quantization | None = None

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
        return cls(FLOATS[weights])

    @classmethod
    def stored(cls, weights: str) -> Precision:
        """Return the precision of a type of weights; beside quantized ones, everything else is bfloat16."""
        return cls.of("bfloat16" if weights in QUANTIZATIONS else "auto", weights)

    def float_dtype(self, file_dtype: str | None, cuda: bool = False) -> str:
        """`dtype`, with ``"auto"`` resolved for a file; on the CPU float16 becomes float32, which can hold it."""
        if self.dtype != "auto":
            return self.dtype
        return file_dtype if file_dtype == "bfloat16" or (cuda and file_dtype == "float16") else "float32"
