"""Packed matrices: integers and scales of a file."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dlf.checkpoints.packed import PackedMatrix
from dlf.errors import CheckpointError


def integers(low: int, high: int, *shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(low + high)).to(dtype)


def floats(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(shape[-1])).to(dtype)


@pytest.mark.parametrize("group", [0, 32, 40])
def test_a_weight_is_its_value_above_zero_times_the_scale_plus_the_minimum(group: int) -> None:
    groups = -(-96 // group) if group else 1
    values, zero = integers(0, 16, 5, 96), integers(0, 17, 5, groups, dtype=torch.int16)
    scale, minimum = floats(5, groups), floats(5, groups)
    plain = PackedMatrix(values, scale, None, 4, group).dequantize()
    shifted = PackedMatrix(values, scale, None, 4, group, zero=zero).dequantize()
    raised = PackedMatrix(values, scale, minimum, 4, group).dequantize()
    assert plain.dtype == torch.float32 and plain.shape == (5, 96)
    for row in range(5):
        for column in (0, 31, 32, 39, 40, 95):
            at = column // group if group else 0
            value, step = int(values[row, column]), float(scale[row, at])
            assert plain[row, column] == value * step
            assert shifted[row, column] == torch.tensor((value - int(zero[row, at])) * step)
            assert raised[row, column] == pytest.approx(value * step + float(minimum[row, at]), rel=1e-7)


def test_scales_of_two_levels_are_multiplied() -> None:
    values = integers(0, 16, 3, 512)
    scale, minimum = integers(0, 64, 3, 16), integers(0, 63, 3, 16)
    blocks = floats(3, 2)
    packed = PackedMatrix(values, scale, minimum, 4, 32, block=256, block_scale=blocks, block_minimum=-blocks.flip(0))
    weight = packed.dequantize()
    for column in (0, 40, 255, 256, 511):
        for row in range(3):
            group, block = column // 32, column // 256
            expected = int(values[row, column]) * int(scale[row, group]) * float(blocks[row, block])
            expected -= int(minimum[row, group]) * float(blocks[2 - row, block])
            assert weight[row, column] == pytest.approx(expected, rel=1e-6, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"values": torch.zeros(4, 64)}, "int8 or uint8"),
        ({"values": torch.zeros(64, dtype=torch.int8)}, "int8 or uint8"),
        ({"scale": torch.zeros(4, 3)}, r"scale is torch.float32 \[4, 3\]"),
        ({"scale": torch.zeros(4, 2, dtype=torch.float64)}, "scale is torch.float64"),
        ({"minimum": torch.zeros(2, 4)}, "minimum is"),
        ({"minimum": torch.zeros(4, 2, dtype=torch.float16)}, "minimum is"),
        ({"zero": torch.zeros(4, 1, dtype=torch.int8)}, "zero is"),
        ({"bits": 9}, "9 bits"),
        ({"group": -1}, "groups of -1"),
        ({"block": 64}, "block_scale"),
        ({"block": 48, "block_scale": torch.zeros(4, 2)}, "not made of groups"),
        ({"block": 64, "block_scale": torch.zeros(4, 1)}, "scale is torch.float32"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(change: dict[str, Any], complaint: str) -> None:
    parts = {
        "values": torch.zeros(4, 64, dtype=torch.int8),
        "scale": torch.zeros(4, 2),
        "minimum": None,
        "bits": 4,
        "group": 32,
    }
    assert PackedMatrix(**parts).shape == (4, 64)
    with pytest.raises(CheckpointError, match=complaint):
        PackedMatrix(**(parts | change))
