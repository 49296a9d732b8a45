"""Rotary frequencies, bit-identical to those of ``transformers.modeling_rope_utils``: the same operations in order.

``dynamic`` frequencies change with the length of a text beyond ``max_position_embeddings``, which cached keys, being
rotated, cannot follow; such a model reads texts of up to that length, where its frequencies are those without scaling.
``longrope`` has two lists of frequencies: transformers takes the second for a text beyond
``original_max_position_embeddings``, and dlf, as vLLM does, for an engine whose context is longer than that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from dlf import _C
from dlf.errors import CheckpointError
from dlf.support.fields import Fields

__all__ = ["MAX_POSITIONS", "context_length", "read_rotary"]

MAX_POSITIONS = 1 << 28
KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
ALIASES = {"su": "longrope", "mrope": "default"}  # mrope rotates text as default does; only images differ


@dataclass(frozen=True)
class _Scaling:
    """A table of rotary scaling, and the lengths that it is about."""

    table: Fields
    kind: str
    factor: float
    original: int
    extended: int


def context_length(fields: Fields) -> int:
    """Return the number of positions that a model was made for: more than it says if its scaling lengthens that."""
    return _scaling(fields, "full_attention").extended


def read_rotary(
    fields: Fields, head_dim: int, layers: str = "full_attention", partial: bool = False, queries: bool = False
) -> _C.RopeSpec:
    """Read ``rope_scaling`` or ``rope_parameters``.

    Parameters
    ----------
    fields
        ``config.json``.
    head_dim
        Size of a head.
    layers
        Kind of the layers, in files that have a table for each.
    partial
        Whether the family can rotate a part of each head, as ``partial_rotary_factor`` says.
    queries
        Whether the family multiplies queries by a function of their position, as ``llama_4_scaling_beta`` says.

    Raises
    ------
    CheckpointError
        If a value is missing or out of bounds, or dlf does not support the kind of scaling.
    """
    scaling = _scaling(fields, layers)
    rope, kind, factor, original = scaling.table, scaling.kind, scaling.factor, scaling.original
    size = _rotated(fields, rope, head_dim, partial)
    theta = rope.number("rope_theta", 1.0 + 1e-6, 1e12)
    powers = theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    inv_freq = 1.0 / powers
    if kind == "default":
        found = _spec(inv_freq)
    elif kind == "dynamic":
        found = _spec(_dynamic(rope, factor, theta, size, original))
    elif kind == "linear":
        found = _spec(inv_freq / factor)
    elif kind == "llama3":
        low = rope.number("low_freq_factor", 1e-3, 1e6)
        high = rope.number("high_freq_factor", 1e-3, 1e6)
        if low == high:
            raise rope.error("high_freq_factor", "different from low_freq_factor")
        found = _spec(_llama3(inv_freq, factor, low, high, original))
    elif kind == "longrope":
        found = _longrope(rope, powers, factor, original)
    else:
        found = _yarn(rope, powers, size, theta, factor, original)
    if queries and "llama_4_scaling_beta" in rope:
        beta = rope.number("llama_4_scaling_beta", 0.0, 1e3)
        key = "original_max_position_embeddings"  # of the table, whatever its kind
        positions = rope.integer(key, 1, MAX_POSITIONS) if key in rope else original
        return _C.RopeSpec(inv_freq=found.inv_freq, scaling=found.scaling, query_beta=beta, query_positions=positions)
    return found


def _table(fields: Fields, layers: str) -> Fields:
    """Return the table of scaling for a kind of layers, with the base that stands beside it."""
    key = "rope_scaling" if fields.table("rope_scaling") else "rope_parameters"
    values, where = fields.table(key), f"{fields.where}: rotary embedding"
    if values and all(isinstance(one, dict) or one is None for one in values.values()):
        if layers not in values:
            raise CheckpointError(f"{where}: {key!r} has tables, but none for {layers}")
        values = values[layers] or {}
    for name, value in values.items():
        if isinstance(value, dict):
            raise CheckpointError(f"{where}: {name!r:.80} is a table beside plain values")
    return Fields(values, {"rope_theta": fields.raw("rope_theta") if "rope_theta" in fields else 10000.0}, where)


def _scaling(fields: Fields, layers: str) -> _Scaling:
    max_positions = fields.integer("max_position_embeddings", 1, MAX_POSITIONS)
    rope = _table(fields, layers)
    kind = _kind(rope)
    if kind == "default":
        return _Scaling(rope, kind, 1.0, max_positions, max_positions)

    # A value beside the rope table, as some files have it, wins over the one inside.
    source = fields if "original_max_position_embeddings" in fields else rope
    original = max_positions
    if "original_max_position_embeddings" in source:
        original = source.integer("original_max_position_embeddings", 1, MAX_POSITIONS)
    if kind in ("yarn", "longrope") and "factor" not in rope:
        factor = max_positions / original
    else:
        factor = rope.number("factor", 1e-3, 1e6)
    if kind == "dynamic":
        return _Scaling(rope, kind, factor, max_positions, max_positions)

    # max_position_embeddings is the original length in some files, the extended one in others. An extended one bounds
    # Llama 3 and longrope, even below `factor` times the original length.
    extended = max_positions
    if kind in ("linear", "yarn") or max_positions <= original:
        extended = max(max_positions, min(int(factor * original), MAX_POSITIONS))
    return _Scaling(rope, kind, factor, original, extended)


def _rotated(fields: Fields, rope: Fields, head_dim: int, partial: bool) -> int:
    """Return how many elements of a head turn."""
    source = rope if "partial_rotary_factor" in rope else fields
    if "partial_rotary_factor" not in source:
        return head_dim
    if not partial:
        source.number("partial_rotary_factor", 1.0, 1.0)
    size = int(head_dim * source.number("partial_rotary_factor", 0.0, 1.0))
    if size < 2 or size % 2:
        raise source.error("partial_rotary_factor", f"a share of head_dim = {head_dim} that is an even number")
    return size


def _spec(inv_freq: torch.Tensor, scaling: float = 1.0) -> _C.RopeSpec:
    return _C.RopeSpec(inv_freq=inv_freq.tolist(), scaling=scaling)


def _kind(rope: Fields) -> str:
    key = "rope_type" if "rope_type" in rope else "type"  # version 4 of transformers had the latter
    kind: Any = rope.raw(key)
    if isinstance(kind, str):
        kind = ALIASES.get(kind, kind)
    if kind is None:
        return "default"
    if not isinstance(kind, str) or kind not in KINDS:
        raise rope.error(key, f"one of the scalings that dlf has, {', '.join((*KINDS, *ALIASES))}")
    return kind


def _dynamic(rope: Fields, factor: float, theta: float, head_dim: int, max_positions: int) -> torch.Tensor:
    """NTK-aware scaling at `max_positions`: the frequencies without scaling, but for rounding."""
    if head_dim == 2:
        raise rope.error("rope_type" if "rope_type" in rope else "type", "another one for heads of 2 numbers")
    base = theta * ((factor * max_positions / max_positions) - (factor - 1)) ** (head_dim / (head_dim - 2))
    inv_freq: torch.Tensor = 1.0 / (base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    return inv_freq


def _longrope(rope: Fields, powers: torch.Tensor, factor: float, original: int) -> _C.RopeSpec:
    """LongRoPE (Ding et al., 2024, arXiv:2402.13753): each frequency divided by a number of its own."""

    def frequencies(key: str) -> list[float]:
        factors = torch.tensor(rope.numbers(key, len(powers), 1e-6, 1e6), dtype=torch.float32)
        return (1.0 / (factors * powers)).tolist()

    if "attention_factor" in rope:
        scaling = rope.number("attention_factor", 0.0, 1e6)
    elif factor <= 1:
        scaling = 1.0
    elif original == 1:
        raise rope.error("original_max_position_embeddings", "more than 1")
    else:
        scaling = math.sqrt(1 + math.log(factor) / math.log(original))
    return _C.RopeSpec(
        inv_freq=frequencies("short_factor"),
        scaling=scaling,
        long_inv_freq=frequencies("long_factor"),
        short_context=original,
    )


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
) -> _C.RopeSpec:
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
    return _spec(inv_freq, attention_factor)
