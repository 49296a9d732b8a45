"""The values of quantized weights, decoded from their tiles (cpp/ops/matrix.h)."""

from __future__ import annotations

import torch


def dequantize(tiles: torch.Tensor, scale: torch.Tensor, out: int, columns: int) -> torch.Tensor:
    """Return the matrix ``[out, columns]`` as float32."""
    if tiles.dtype == torch.int8:  # [out / 16, in / 4, 16, 4]
        values = tiles.permute(0, 2, 1, 3).flatten(2).float()
        scales = scale.reshape(len(tiles), 16, 1)
    else:  # [out / 16, in / 8, 16, 4]: inputs 0 .. 3 in the low halves, 4 .. 7 in the high ones
        both = torch.stack([tiles & 15, tiles >> 4], dim=3)
        values = both.permute(0, 2, 1, 3, 4).flatten(2).float() - 8
        scales = scale.float().permute(0, 2, 1).repeat_interleave(values.shape[2] // scale.shape[1], 2)
    return (values * scales).flatten(0, 1)[:out, :columns].contiguous()
