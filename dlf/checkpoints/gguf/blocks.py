"""Unpacks the blocks of GGUF's quantised types into integers and scales.

Source: ``block_q4_0`` and its siblings in ``ggml-common.h``, and ``dequantize_row_*`` in ``ggml-quants.c``. The
``gguf`` package only makes floats, of these and of further types.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from dlf.checkpoints.packed import PackedMatrix
from dlf.checkpoints.precision import MatrixFormat

__all__ = ["UNPACK", "format_of", "unpack"]

SMALL, SUPER = 32, 256  # values of a block
CODES = torch.tensor([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=torch.int8)


def unpack(kind: GGMLQuantizationType, rows: torch.Tensor) -> PackedMatrix:
    """Return the integers and scales of rows of blocks.

    Parameters
    ----------
    kind
        One of `UNPACK`.
    rows
        uint8 ``[out, bytes of a row]``.
    """
    size = GGML_QUANT_SIZES[kind][1]
    return UNPACK[kind](rows.view(len(rows), -1, size))


def format_of(kind: GGMLQuantizationType) -> MatrixFormat | None:
    """Return the format of the tiles that keep a type of `UNPACK`."""
    return unpack(kind, torch.zeros(1, GGML_QUANT_SIZES[kind][1], dtype=torch.uint8)).format


def _half(blocks: torch.Tensor, begin: int) -> torch.Tensor:
    """Return the float16 at a place of each block."""
    return blocks[..., begin : begin + 2].contiguous().view(torch.float16).squeeze(-1)


def _nibbles(content: torch.Tensor) -> torch.Tensor:
    """Return the low halves of bytes, then the high ones."""
    return torch.cat([content & 15, content >> 4], dim=-1)


def _fifth_bits(blocks: torch.Tensor, begin: int) -> torch.Tensor:
    """Return bit 4 of the 32 values of a block, whose bits lie in 4 bytes."""
    shifts = torch.arange(8, dtype=torch.uint8)
    bits = (blocks[..., begin : begin + 4, None] >> shifts) & 1
    return bits.flatten(-2) << 4


def _flat(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(len(values), -1)


def _split(content: torch.Tensor, *sizes: int) -> torch.Tensor:
    """Split the last axis."""
    return content.reshape(*content.shape[:-1], *sizes)


def _centred(values: torch.Tensor, zero: int) -> torch.Tensor:
    """Return unsigned integers as signed ones around `zero`."""
    return values.view(torch.int8) - zero


def _q8_0(blocks: torch.Tensor) -> PackedMatrix:
    values = blocks[..., 2:].contiguous().view(torch.int8)
    return PackedMatrix(_flat(values), _half(blocks, 0), None, 8, SMALL)


def _q4_0(blocks: torch.Tensor) -> PackedMatrix:
    values = _centred(_nibbles(blocks[..., 2:]), 8)
    return PackedMatrix(_flat(values), _half(blocks, 0), None, 4, SMALL)


def _q4_1(blocks: torch.Tensor) -> PackedMatrix:
    return PackedMatrix(_flat(_nibbles(blocks[..., 4:])), _half(blocks, 0), _half(blocks, 2), 4, SMALL)


def _q5_0(blocks: torch.Tensor) -> PackedMatrix:
    values = _centred(_nibbles(blocks[..., 6:]) | _fifth_bits(blocks, 2), 16)
    return PackedMatrix(_flat(values), _half(blocks, 0), None, 5, SMALL)


def _q5_1(blocks: torch.Tensor) -> PackedMatrix:
    values = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks, 4)
    return PackedMatrix(_flat(values), _half(blocks, 0), _half(blocks, 2), 5, SMALL)


def _k_scales(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the eight scales and minimums of 6 bits that 12 bytes hold."""
    a, b, c = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scale = torch.cat([a & 63, (c & 15) | ((a >> 6) << 4)], dim=-1)
    minimum = torch.cat([b & 63, (c >> 4) | ((b >> 6) << 4)], dim=-1)
    return scale, minimum


def _with_minimum(blocks: torch.Tensor, values: torch.Tensor, bits: int) -> PackedMatrix:
    scale, minimum = _k_scales(blocks[..., 4:16])
    return PackedMatrix(
        _flat(values),
        _flat(scale),
        _flat(minimum),
        bits,
        SMALL,
        block=SUPER,
        block_scale=_half(blocks, 0),
        block_minimum=-_half(blocks, 2),
    )


def _q4_k(blocks: torch.Tensor) -> PackedMatrix:
    return _with_minimum(blocks, _nibbles(_split(blocks[..., 16:], 4, 32)), 4)


def _q5_k(blocks: torch.Tensor) -> PackedMatrix:
    low = _split(_nibbles(_split(blocks[..., 48:], 4, 32)).flatten(-2), 8, 32)
    shifts = torch.arange(8, dtype=torch.uint8)[:, None]
    high = (blocks[..., None, 16:48] >> shifts) & 1
    return _with_minimum(blocks, low | (high << 4), 5)


def _q6_k(blocks: torch.Tensor) -> PackedMatrix:
    low = _split(blocks[..., :128], 2, 2, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    high = (_split(blocks[..., 128:192], 2, 1, 32) >> shifts) & 3
    values = _centred(torch.cat([low & 15, low >> 4], dim=-2) | (high << 4), 32)
    scale = blocks[..., 192:208].contiguous().view(torch.int8)
    return PackedMatrix(_flat(values), _flat(scale), None, 6, 16, block=SUPER, block_scale=_half(blocks, 208))


def _q2_k(blocks: torch.Tensor) -> PackedMatrix:
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    values = (_split(blocks[..., 16:80], 2, 1, 32) >> shifts) & 3
    return PackedMatrix(
        _flat(values),
        _flat(blocks[..., :16] & 15),
        _flat(blocks[..., :16] >> 4),
        2,
        16,
        block=SUPER,
        block_scale=_half(blocks, 80),
        block_minimum=-_half(blocks, 82),
    )


def _q3_k(blocks: torch.Tensor) -> PackedMatrix:
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    low = (_split(blocks[..., 32:96], 2, 1, 32) >> shifts) & 3
    high = (blocks[..., None, :32] >> torch.arange(8, dtype=torch.uint8)[:, None]) & 1
    values = _centred(low.flatten(-3, -2) | (high << 2), 4)
    four = _nibbles(blocks[..., 96:104])
    two = ((blocks[..., None, 104:108] >> shifts) & 3).flatten(-2)
    scale = _centred(four | (two << 4), 32)
    return PackedMatrix(_flat(values), _flat(scale), None, 3, 16, block=SUPER, block_scale=_half(blocks, 108))


def _codes(nibbles: torch.Tensor) -> torch.Tensor:
    """Return the integers that the values of IQ4 types stand for, which are not evenly spaced."""
    return CODES[nibbles.long()]


def _iq4_nl(blocks: torch.Tensor) -> PackedMatrix:
    return PackedMatrix(_flat(_codes(_nibbles(blocks[..., 2:]))), _half(blocks, 0), None, 8, SMALL)


def _iq4_xs(blocks: torch.Tensor) -> PackedMatrix:
    values = _codes(_nibbles(_split(blocks[..., 8:], 8, 16)))
    four = torch.stack((blocks[..., 4:8] & 15, blocks[..., 4:8] >> 4), dim=-1).flatten(-2)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)
    two = ((blocks[..., 2:4, None] >> shifts) & 3).flatten(-2)
    scale = _centred(four | (two << 4), 32)
    return PackedMatrix(_flat(values), _flat(scale), None, 8, SMALL, block=SUPER, block_scale=_half(blocks, 0))


UNPACK: dict[GGMLQuantizationType, Callable[[torch.Tensor], PackedMatrix]] = {
    GGMLQuantizationType.Q8_0: _q8_0,
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
    GGMLQuantizationType.Q5_0: _q5_0,
    GGMLQuantizationType.Q5_1: _q5_1,
    GGMLQuantizationType.Q4_K: _q4_k,
    GGMLQuantizationType.Q5_K: _q5_k,
    GGMLQuantizationType.Q6_K: _q6_k,
    GGMLQuantizationType.Q2_K: _q2_k,
    GGMLQuantizationType.Q3_K: _q3_k,
    GGMLQuantizationType.IQ4_NL: _iq4_nl,
    GGMLQuantizationType.IQ4_XS: _iq4_xs,
}
