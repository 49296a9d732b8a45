"""Rotary frequencies, as ``transformers.modeling_rope_utils`` computes them, operation by operation, bit by bit."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from dlf.errors import CheckpointError
from dlf.fields import Fields

__all__ = ["rotary_frequencies"]


def rotary_frequencies(fields: Fields, head_dim: int, max_positions: int) -> tuple[npt.NDArray[np.float32], float]:
    """Rotary frequencies, float32 ``[head_dim / 2]``, and the factor on their cosines and sines.

    Follows ``transformers.modeling_rope_utils`` operation by operation in float32, so that the bits agree.
    """
    values = fields.table("rope_scaling") or fields.table("rope_parameters")
    for key, value in values.items():
        if isinstance(value, dict):  # what other architectures have: a table for each kind of layer
            raise CheckpointError(f"{fields.where}: rotary embedding: '{key}' is a table; dlf has one for all layers")
    defaults = {"rope_theta": 10000.0 if "rope_theta" not in fields else fields.raw("rope_theta")}
    rope = Fields(values, defaults, f"{fields.where}: rotary embedding")
    kind = rope.raw("rope_type", "type")
    kind = "default" if kind is None else kind
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise rope.error("rope_type", "default, linear, llama3 or yarn, the scalings dlf has")
    for source in (fields, rope):
        if "partial_rotary_factor" in source:
            source.number("partial_rotary_factor", 1.0, 1.0)  # the whole head turns, in every family dlf runs

    theta = rope.number("rope_theta", 1.0 + 1e-6, 1e12)
    powers = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    inv_freq = 1.0 / powers
    if kind == "default":
        return inv_freq.numpy(), 1.0

    def original_positions() -> int:
        # A value beside the rope table, as some files have it, wins over the one inside.
        source = fields if "original_max_position_embeddings" in fields else rope
        if "original_max_position_embeddings" not in source:
            return max_positions
        return source.integer("original_max_position_embeddings", 1, 1 << 28)

    if kind == "yarn" and "factor" not in rope:
        factor = max_positions / original_positions()
    else:
        factor = rope.number("factor", 1e-3, 1e6)
    if kind == "linear":
        return (inv_freq / factor).numpy(), 1.0
    if kind == "llama3":
        low = rope.number("low_freq_factor", 1e-3, 1e6)
        high = rope.number("high_freq_factor", 1e-3, 1e6)
        if low == high:
            raise rope.error("high_freq_factor", "different from low_freq_factor")
        return _llama3(inv_freq, factor, low, high, original_positions()).numpy(), 1.0
    return _yarn(rope, powers, head_dim, theta, factor, original_positions())


def _llama3(inv_freq: torch.Tensor, factor: float, low: float, high: float, positions: int) -> torch.Tensor:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    wavelength = 2 * math.pi / inv_freq
    stretched = torch.where(wavelength > positions / low, inv_freq / factor, inv_freq)
    blend = (positions / wavelength - low) / (high - low)
    blended = (1 - blend) * stretched / factor + blend * stretched
    between = ~(wavelength < positions / high) * ~(wavelength > positions / low)
    return torch.where(between, blended, stretched)


def _yarn(
    rope: Fields, powers: torch.Tensor, head_dim: int, theta: float, factor: float, positions: int
) -> tuple[npt.NDArray[np.float32], float]:
    """YaRN (Peng et al., 2023, arXiv:2309.00071): a ramp over the dimensions from kept to stretched frequencies."""

    def optional(key: str, default: float, low: float = 0.0, high: float = 1e6) -> float:
        return (rope.number(key, low, high) if key in rope else 0.0) or default

    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    def dimension(rotations: float) -> float:
        return head_dim * math.log(positions / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    mscale, mscale_all_dim = optional("mscale", 0.0), optional("mscale_all_dim", 0.0)
    if "attention_factor" in rope:
        attention_factor = rope.number("attention_factor", 0.0, 1e6)
    elif mscale and mscale_all_dim:
        attention_factor = magnitude(mscale) / magnitude(mscale_all_dim)
    else:
        attention_factor = magnitude(1.0)

    first = dimension(optional("beta_fast", 32.0, low=1e-6))
    last = dimension(optional("beta_slow", 1.0, low=1e-6))
    if rope.flag("truncate") if "truncate" in rope else True:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    if first == last:
        last += 0.001  # the ramp needs a width
    ramp = torch.clamp((torch.arange(head_dim // 2, dtype=torch.float32) - first) / (last - first), 0, 1)
    kept = 1 - ramp
    inv_freq = 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept
    return inv_freq.numpy(), attention_factor
